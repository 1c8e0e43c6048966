"""MANIFEST.json: contents of a checkpoint, and the proof that it is whole.

Raymill ignores a step directory without a manifest that verifies. The manifest is written last,
after every file it names was flushed, and carries their sizes and digests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raymill.checkpoint.file_record import DamagedError, FileRecord
from raymill.checkpoint.verified_files import LocalFiles, VerifiedFiles
from raymill.durable import JsonObject, sha256_json
from raymill.errors import CheckpointError
from raymill.reading import MISSING, read_text, status

FORMAT_VERSION = 2
# Of format 1, in which the index lists all slices, checkpoints can still be read.
_READABLE = (1, FORMAT_VERSION)
MANIFEST_NAME = "MANIFEST.json"
INDEX_NAME = "index.json"
# Files looked at at once.
_LOOKS = 16


@dataclass(frozen=True)
class CheckpointManifest:
    """Committed training state.

    `step` counts optimizer steps, `samples` global samples consumed (the data position), `tokens`
    predicted tokens. Randomness is a function of (seed, step, rank), so no generator state is
    stored. `config` is flattened to the keys that a user types. `parent` names the origin of the
    weights: a registered version, a folder, or a forked run; `parent_digest` is the digest of those
    weights. `model_digests` are those of other models, by configuration key. `updates` counts
    optimizer updates where they differ from `step`. `state` is further state of the job; `guard` is
    the guard's memory, with the samples that it left out. `token` and `start` identify the lease,
    and the holder's start of workers, under which the checkpoint was written. `order_version` is that
    of the order of the data, which a run and its forks keep.
    """

    step: int
    samples: int
    tokens: int
    world_size: int
    attempt: int
    config: Mapping[str, Any]
    config_digest: str
    data_digests: tuple[str, ...]
    tokenizer_fingerprint: str
    code_commit: str | None
    parent: str | None
    files: Mapping[str, FileRecord]
    parent_digest: str | None = None
    model_digests: Mapping[str, str] = field(default_factory=dict)
    updates: Mapping[str, int] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    guard: Mapping[str, Any] = field(default_factory=dict)
    token: int = 0
    start: int = 0
    # Manifests from before there were versions lack it.
    order_version: int = 1
    format_version: int = FORMAT_VERSION
    digest: str = ""

    def to_json(self) -> JsonObject:
        """Return the manifest as stored, with `digest` taken over everything else."""
        body = asdict(self)
        del body["digest"]
        body["data_digests"] = list(self.data_digests)
        return {**body, "digest": sha256_json(body)}


def read_manifest(directory: Path) -> CheckpointManifest:
    """Read and check a manifest by itself, without the files it names.

    Raises:
        CheckpointError: the manifest is missing, isn't JSON, was altered, or has another format.
        StorageError: it can't be read.
    """
    try:
        text = read_text(directory / MANIFEST_NAME)
    except MISSING:
        raise CheckpointError(
            f"{directory} has no {MANIFEST_NAME}: it was never committed"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{directory / MANIFEST_NAME} isn't text: {error}") from error
    return parse_manifest(text, str(directory))


def parse_manifest(text: str, location: str) -> CheckpointManifest:
    """Parse a manifest that was read from `location`.

    Raises:
        CheckpointError: it isn't JSON, was altered, or has another format.
    """
    path = f"{location}/{MANIFEST_NAME}"
    try:
        stored = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} isn't JSON: {error}") from error
    if not isinstance(stored, dict) or stored.get("format_version") not in _READABLE:
        version = (
            stored.get("format_version") if isinstance(stored, dict) else type(stored).__name__
        )
        raise CheckpointError(f"{path}: expected format version {FORMAT_VERSION}, found {version}")
    body = {key: value for key, value in stored.items() if key != "digest"}
    if sha256_json(body) != stored.get("digest"):
        raise CheckpointError(f"{path} doesn't match its own digest: it was altered or damaged")
    try:
        files = {name: FileRecord(**record) for name, record in body.pop("files").items()}
        data_digests = tuple(body.pop("data_digests"))
        return CheckpointManifest(
            **body, files=files, data_digests=data_digests, digest=stored["digest"]
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} lacks a field or has one too many: {error}") from error


def inspect(directory: Path) -> CheckpointManifest:
    """Check a checkpoint's manifest and index, and that its files have their sizes.

    The other bytes are verified when they are read (`verified_files.py`).

    Raises:
        CheckpointError: a file is missing or has another size, or the index was altered; names it.
        StorageError: a file can't be read, which says nothing about the checkpoint.
    """
    manifest = read_manifest(directory)
    paths = [directory / name for name in manifest.files]
    # There may be thousands of files on storage that takes a millisecond for each.
    with ThreadPoolExecutor(_LOOKS) as pool:
        for path, state, record in zip(
            paths, pool.map(status, paths), manifest.files.values(), strict=True
        ):
            if state is None:
                raise DamagedError(f"{path} is missing", str(directory))
            if state.st_size != record.bytes:
                raise DamagedError(
                    f"{path} has {state.st_size} bytes, its manifest says {record.bytes}",
                    str(directory),
                )
    VerifiedFiles(LocalFiles(directory), manifest.files).verify([INDEX_NAME])
    return manifest


def verify(directory: Path) -> CheckpointManifest:
    """Check every byte of a checkpoint against its manifest.

    Raises:
        CheckpointError: a file is missing, or has another size or digest; names it.
        StorageError: a file can't be read, which says nothing about the checkpoint.
    """
    # Sizes are checked first, because hashing takes much longer.
    manifest = inspect(directory)
    VerifiedFiles(LocalFiles(directory), manifest.files).verify(manifest.files)
    return manifest
