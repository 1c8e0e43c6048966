"""Manifest of a prepared folder: the shards, their inputs, and the digests that prove them whole.

A prepared folder is finished when its `manifest.json` exists: that file is written last. Tables
next to it name every shard and every input with its size and digests, and `manifest.json` has their
digests (format version 1 had the records themselves). A checkpoint stores only the manifest's own
digest, and that still proves which bytes a run was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from raymill.data.store.facts import (
    BadInputs,
    ChatFacts,
    Contamination,
    PreferenceFacts,
    PromptsFacts,
    TextFacts,
)
from raymill.data.store.tables import Table, TableFile
from raymill.durable import JsonObject, canonical_json, sha256_file, sha256_text, write_atomic
from raymill.errors import DataError, StorageError
from raymill.reading import MISSING, is_file, is_folder, read_text, status

if TYPE_CHECKING:
    from tokenizers import Tokenizer

T = TypeVar("T")

FORMAT_VERSION = 2
# Folders are named by digests that contain the first version, so that those that exist are found.
NAMING_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
DTYPES = ("uint16", "uint32")
# Shards that a driver looks for before it starts workers.
DRIVER_CHECKS = 1000
AGAIN = "run jobs/prepare.py again"


@dataclass(frozen=True)
class Shard:
    """One Parquet file. `path` is relative to the prepared folder; sizes are in bytes.

    `tokens` counts the shard's stream once, although rows overlap by one token; `predicted_tokens`
    is one less; `bytes` is the UTF-8 length of the text behind the stream.
    """

    path: str
    rows: int
    row_groups: int
    tokens: int
    predicted_tokens: int
    bytes: int
    file_bytes: int
    sha256: str
    footer_sha256: str


@dataclass(frozen=True)
class Split:
    """Totals over the shards of "train" or "validation", in shard order."""

    rows: int
    tokens: int
    predicted_tokens: int
    bytes: int
    shards: Table[Shard]

    @classmethod
    def from_shards(cls, shards: Iterable[Shard]) -> Split:
        """Sum up the shards, which are consumed one after another."""
        table = Table.of(Shard, shards)
        totals = ("rows", "tokens", "predicted_tokens", "bytes")
        return cls(**{name: int(table.column(name).sum()) for name in totals}, shards=table)


@dataclass(frozen=True)
class TokenizerIdentity:
    """Tokenizer that wrote the ids. `begins_with`: ids that it puts before every document."""

    fingerprint: str
    vocab_size: int
    end_of_text_id: int
    begins_with: tuple[int, ...] = ()

    @classmethod
    def from_tree(cls, tree: JsonObject) -> TokenizerIdentity:
        """Read the identity from JSON; data prepared before `begins_with` existed has none."""
        return cls(**{**tree, "begins_with": tuple(tree.get("begins_with", ()))})


@dataclass(frozen=True)
class InputDigest:
    """Byte range of an input, with its sha256; `path` is relative to the source folder."""

    path: str
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True)
class DataManifest:
    """Contents of `manifest.json`; `digest` is the sha256 of its canonical JSON without `digest` and
    `text`, which has a digest of its own in the file."""

    format_version: int
    name: str
    sequence_length: int
    row_group_rows: int
    dtype: str
    tokenizer: TokenizerIdentity
    splits: dict[str, Split]
    inputs: Sequence[InputDigest]
    documents: int
    bad_inputs: BadInputs
    contamination: Contamination | None
    config: JsonObject
    # One of the keys of `rows.TOKEN_COLUMNS`; each kind but text fills in its own facts.
    kind: str = "text"
    chat: ChatFacts | None = None
    preference: PreferenceFacts | None = None
    prompts: PromptsFacts | None = None
    # Descriptions of text are no part of the digest: equal rows have equal digests.
    text: TextFacts | None = None
    # The digest of the tokenizer's file; its fingerprint takes long to compute.
    tokenizer_sha256: str = ""
    digest: str = ""

    @property
    def messages(self) -> ChatFacts | PreferenceFacts | PromptsFacts | None:
        """Facts that all data made of messages shares: the template, and the token that ends a
        turn."""
        return self.chat or self.preference or self.prompts


@dataclass(frozen=True)
class PreparedData:
    """Finished folder of tokenized shards, with its verified manifest."""

    folder: Path
    manifest: DataManifest

    @property
    def tokenizer_folder(self) -> Path:
        """Hugging Face tokenizer folder inside the prepared folder."""
        return self.folder / TOKENIZER_FOLDER

    def shard_path(self, shard: Shard) -> Path:
        """Return the path of a shard."""
        return self.folder / shard.path


def is_finished(folder: Path) -> bool:
    """Return whether a prepared folder has its manifest; raise StorageError if the storage can't
    tell."""
    return is_file(folder / MANIFEST_NAME)


def write_manifest(folder: Path, manifest: DataManifest) -> DataManifest:
    """Commit a prepared folder: write the tables, then `manifest.json`; return what it holds."""
    tree = asdict(replace(manifest, splits={}, inputs=(), text=None))
    del tree["digest"], tree["text"]
    tree["tokenizer_sha256"] = sha256_file(_tokenizer_file(folder))
    for name, split in manifest.splits.items():
        totals = asdict(replace(split, shards=None))  # type: ignore[arg-type]
        file = split.shards.write(folder, f"{name}.arrow")
        tree["splits"][name] = {**totals, "shards": asdict(file)}
    tree["inputs"] = asdict(Table.of(InputDigest, manifest.inputs).write(folder, "inputs.arrow"))
    tree["digest"] = sha256_text(canonical_json(tree))
    if (text := manifest.text) is not None:
        lineage = asdict(text.lineage.write(folder, "lineage.arrow"))
        tree["text"] = {"fertility": text.fertility, "packing": text.packing, "lineage": lineage}
        tree["text_sha256"] = sha256_text(canonical_json(tree["text"]))
    write_atomic(folder / MANIFEST_NAME, canonical_json(tree) + "\n")
    return _from_tree(folder, tree)


def read_manifest(folder: Path) -> DataManifest:
    """Read `manifest.json` and verify its digest and version; tables are opened when needed.

    Raises:
        DataError: there is no manifest, it isn't JSON, has another format version, or doesn't match
            its digest.
        StorageError: it can't be read.
    """
    path = folder / MANIFEST_NAME
    try:
        tree = json.loads(read_text(path))
    except MISSING:
        # Without a manifest, an existing folder belongs to a preparation that didn't finish.
        state = (
            "holds no manifest.json: its preparation didn't finish"
            if is_folder(folder)
            else "doesn't exist"
        )
        raise DataError(f"The prepared folder {folder} {state}; {AGAIN}.") from None
    except ValueError as error:
        raise DataError(
            f"{path} can't be read as JSON ({error}); delete it and {AGAIN}."
        ) from error
    if not isinstance(tree, dict):
        raise DataError(
            f"{path}: expected a JSON object, found {type(tree).__name__}; delete it and {AGAIN}."
        )
    version = tree.get("format_version")
    if version not in (1, FORMAT_VERSION):
        raise DataError(
            f"{path} has format version {version!r}, this Raymill reads 1 to {FORMAT_VERSION}; "
            f"{AGAIN} with this version."
        )
    stated = tree.pop("digest", None)
    text, text_sha256 = tree.pop("text", None), tree.pop("text_sha256", None)
    actual = sha256_text(canonical_json(tree))
    # What describes text isn't part of the digest, but it is vouched for as well.
    if stated == actual and text is not None and text_sha256 != sha256_text(canonical_json(text)):
        stated, actual = text_sha256, sha256_text(canonical_json(text))
    if stated != actual:
        raise DataError(
            f"{path} was changed after it was written: it states digest {str(stated)[:12]}, its "
            f"contents have {actual[:12]}; restore it, or delete it and {AGAIN}."
        )
    tree["digest"] = stated
    if text is not None:
        tree["text"] = text
    try:
        return _from_tree(folder, tree)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} lacks or misspells an entry ({error}); delete it and {AGAIN}."
        ) from error


def load_prepared(folder: Path) -> PreparedData:
    """Open a finished prepared folder; verify the manifest, its tables, and the tokenizer.

    Shards aren't touched: `shards.read_row_group` verifies them row group by row group.

    Raises:
        DataError: a file doesn't match; names it, with the expected and the actual value.
        StorageError: a file can't be read.
    """
    manifest = read_manifest(folder)
    for split in manifest.splits.values():
        split.shards.verify()
    for name, sha256 in _other_files(manifest):
        _check_file(folder / name, sha256)
    path = _tokenizer_file(folder)
    # Equal bytes are the same tokenizer; other bytes may be, if only their layout changed.
    if not is_file(path) or sha256_file(path) != manifest.tokenizer_sha256:
        fingerprint = tokenizer_fingerprint(path)
        if fingerprint != manifest.tokenizer.fingerprint:
            raise DataError(
                f"{path} has fingerprint {fingerprint[:12]}, the manifest expects "
                f"{manifest.tokenizer.fingerprint[:12]}: it isn't the tokenizer that wrote these "
                f"shards; restore it, or delete {MANIFEST_NAME} and {AGAIN}."
            )
    return PreparedData(folder, manifest)


def load_for_training(folder: Path) -> PreparedData:
    """Open a finished prepared folder in a driver; a small corpus is checked for missing shards.

    Raises as `load_prepared` and `check_shard_sizes` do.
    """
    prepared = load_prepared(folder)
    check_shard_sizes(prepared, DRIVER_CHECKS)
    return prepared


def check_shard_sizes(prepared: PreparedData, limit: int | None = None) -> None:
    """Raise DataError unless every shard exists with its size: a request to the storage for each.

    A preparation that finds its folder finished does so, and the driver of a training job if a
    split has `limit` shards at most. Otherwise a missing shard is found when it is read.
    """
    with ThreadPoolExecutor(16) as pool:
        for split in prepared.manifest.splits.values():
            if limit is not None and len(split.shards) > limit:
                continue
            paths = map(prepared.shard_path, split.shards)
            for _ in pool.map(check_shard_size, paths, split.shards):
                pass


def _tokenizer_file(folder: Path) -> Path:
    return folder / TOKENIZER_FOLDER / "tokenizer.json"


def _other_files(manifest: DataManifest) -> list[tuple[str, str]]:
    """List the other files that the manifest vouches for, with their sha256."""
    chat, prompts = manifest.chat, manifest.prompts
    files = [] if chat is None else [(chat.questions, chat.questions_sha256)]
    return files if prompts is None else [*files, (prompts.book, prompts.book_sha256)]


def _check_file(path: Path, sha256: str) -> None:
    actual = sha256_file(path) if is_file(path) else "nothing"
    if actual != sha256:
        raise DataError(
            f"{path}: expected sha256 {sha256[:12]}, found {actual[:12]}; restore it, or delete "
            f"{MANIFEST_NAME} and {AGAIN}."
        )


def read_tokenizer(file: Path) -> Tokenizer:
    """Load the tokenizer of a `tokenizer.json`.

    Raises:
        DataError: there is no such file, or it holds something else.
        StorageError: it can't be read.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(read_text(file))
    except StorageError:
        raise
    # `tokenizers` raises nothing narrower for a malformed file.
    except Exception as error:
        raise DataError(f"{file} isn't a tokenizer.json ({error}).") from error


def tokenizer_fingerprint(path: Path) -> str:
    """Return the sha256 of a `tokenizer.json`'s canonical JSON; equal tokenizers have equal
    ones."""
    try:
        return sha256_text(canonical_json(json.loads(read_text(path))))
    except MISSING:
        raise DataError(f"{path} is missing; {AGAIN}.") from None
    except ValueError as error:
        raise DataError(f"{path} can't be read as JSON ({error}).") from error


def check_shard_size(path: Path, shard: Shard) -> None:
    """Raise DataError unless the shard exists with the size that its manifest states."""
    file = status(path)
    if file is None:
        raise DataError(
            f"{path} is missing: the manifest lists it with {shard.file_bytes} bytes; restore it, "
            f"or delete {MANIFEST_NAME} and {AGAIN}."
        )
    if file.st_size != shard.file_bytes:
        what = "is truncated" if file.st_size < shard.file_bytes else "is too long"
        raise DataError(
            f"{path} {what}: expected {shard.file_bytes} bytes, found {file.st_size}; restore it, or "
            f"delete {MANIFEST_NAME} and {AGAIN}."
        )


def _from_tree(folder: Path, tree: JsonObject) -> DataManifest:
    """Build the dataclasses; an unknown or missing entry raises TypeError or KeyError."""
    values = dict(tree)
    splits = {
        name: Split(**{**split, "shards": _table(Shard, folder, split["shards"])})
        for name, split in values.pop("splits").items()
    }
    text = values.pop("text", None)
    values.pop("text_sha256", None)
    # JSON has no tuples, so nested values are converted one by one.
    bad = values.pop("bad_inputs")
    contamination = values.pop("contamination")
    facts: JsonObject = {}
    kinds = {"chat": ChatFacts, "preference": PreferenceFacts, "prompts": PromptsFacts}
    for name, cls in kinds.items():
        stored = values.pop(name, None)
        facts[name] = None if stored is None else cls(**stored)
    return DataManifest(
        tokenizer=TokenizerIdentity.from_tree(values.pop("tokenizer")),
        splits=splits,
        inputs=_table(InputDigest, folder, values.pop("inputs")),
        bad_inputs=BadInputs(bad["count"], tuple(bad["examples"])),
        contamination=None if contamination is None else Contamination(**contamination),
        text=None
        if text is None
        else TextFacts(**{**text, "lineage": _table(TableFile, folder, text["lineage"])}),
        **facts,
        **values,
    )


def _table(record: type[T], folder: Path, stored: JsonObject | list[JsonObject]) -> Table[T]:
    """Return a table's records; format version 1 stores themselves in place of the table's file."""
    if isinstance(stored, list):
        return Table.of(record, (record(**entry) for entry in stored))
    return Table.stored(record, folder, TableFile(**stored))
