"""MANIFEST.json: what a checkpoint holds, and the proof that it is whole.

A step directory without a manifest that verifies doesn't exist as far as Raymill is concerned. The
manifest is written last, after every file it names was flushed, and carries their sizes and digests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from raymill.durable import sha256_files, sha256_json
from raymill.errors import CheckpointError
from raymill.reading import MISSING, read_text, status

FORMAT_VERSION = 1
MANIFEST_NAME = "MANIFEST.json"
INDEX_NAME = "index.json"


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A committed training state.

    `step` counts optimizer steps, `samples` global samples consumed (the data position), `tokens`
    predicted tokens. Randomness is a function of (seed, step, rank), so there is no generator state.
    """

    step: int
    samples: int
    tokens: int
    world_size: int
    attempt: int
    config: Mapping[str, Any]  # flattened, as the user types the keys
    config_digest: str
    data_digests: tuple[str, ...]
    tokenizer_fingerprint: str
    code_commit: str | None
    parent: (
        str | None
    )  # what the weights started from: a registered version, a folder, a forked run
    files: Mapping[str, FileRecord]
    parent_digest: str | None = None  # of the parent's weights
    model_digests: Mapping[str, str] = field(default_factory=dict)  # of other models, by their key
    updates: Mapping[str, int] = field(default_factory=dict)  # optimizer updates, where not `step`
    state: Mapping[str, Any] = field(default_factory=dict)  # what else the job goes on from
    guard: Mapping[str, Any] = field(default_factory=dict)  # its memory, with the samples left out
    token: int = 0  # of the lease under which it was written
    start: int = 0  # and which of that holder's starts of workers wrote it
    format_version: int = FORMAT_VERSION
    digest: str = ""

    def to_json(self) -> dict[str, Any]:
        """The manifest as stored, its `digest` taken over everything else."""
        body = asdict(self)
        del body["digest"]
        body["data_digests"] = list(self.data_digests)
        return {**body, "digest": sha256_json(body)}


def read_manifest(directory: Path) -> Manifest:
    """Read and check a manifest by itself, not the files it names.

    Raises:
        CheckpointError: the manifest is missing, isn't JSON, was altered, or is of another format.
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


def parse_manifest(text: str, place: str) -> Manifest:
    """A manifest that was read from `place`.

    Raises:
        CheckpointError: it isn't JSON, was altered, or is of another format.
    """
    path = f"{place}/{MANIFEST_NAME}"
    try:
        stored = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} isn't JSON: {error}") from error
    if not isinstance(stored, dict) or stored.get("format_version") != FORMAT_VERSION:
        found = stored.get("format_version") if isinstance(stored, dict) else type(stored).__name__
        raise CheckpointError(f"{path}: expected format version {FORMAT_VERSION}, found {found}")
    body = {key: value for key, value in stored.items() if key != "digest"}
    if sha256_json(body) != stored.get("digest"):
        raise CheckpointError(f"{path} doesn't match its own digest: it was altered or damaged")
    try:
        files = {name: FileRecord(**record) for name, record in body.pop("files").items()}
        data_digests = tuple(body.pop("data_digests"))
        return Manifest(**body, files=files, data_digests=data_digests, digest=stored["digest"])
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} lacks a field or has one too many: {error}") from error


def verify(directory: Path) -> Manifest:
    """Check every byte of a checkpoint against its manifest.

    Raises:
        CheckpointError: names the file that is missing, of another size, or of another digest.
        StorageError: a file can't be read, which says nothing about the checkpoint.
    """
    manifest = read_manifest(directory)
    for name, record in manifest.files.items():
        path = directory / name
        found = status(path)
        if found is None:
            raise CheckpointError(f"{path} is missing")
        if found.st_size != record.bytes:
            raise CheckpointError(
                f"{path} has {found.st_size} bytes, its manifest says {record.bytes}"
            )
    try:
        digests = sha256_files([directory / name for name in manifest.files])
    except MISSING as error:  # since it was looked for
        raise CheckpointError(f"{error.filename} is missing") from error
    for (name, record), digest in zip(manifest.files.items(), digests, strict=True):
        if digest != record.sha256:
            raise CheckpointError(
                f"{directory / name} is damaged: sha256 {digest[:12]}…, its manifest says "
                f"{record.sha256[:12]}…"
            )
    return manifest
