"""The manifest of a prepared folder: what was written, from what, and how to tell that it is still
whole.

A prepared folder counts as finished when its `manifest.json` exists: that file is written last,
and it names every shard with its size and digests. Training keeps only the manifest's own digest
in its checkpoints, and can still prove which bytes it was fed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.durable import canonical_json, sha256_file, sha256_text, write_atomic
from raymill.errors import DataError, StorageError
from raymill.reading import MISSING, is_file, is_folder, read_text, status

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
DTYPES = ("uint16", "uint32")
AGAIN = "run jobs/prepare.py again"


@dataclass(frozen=True)
class Shard:
    """One Parquet file. `path` is relative to the prepared folder; sizes are in bytes.

    `tokens` counts the shard's stream once (rows overlap by one token); `predicted_tokens` is one
    less; `bytes` is the UTF-8 length of the text behind the stream.
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
    shards: tuple[Shard, ...]

    @classmethod
    def of(cls, shards: tuple[Shard, ...]) -> Split:
        """Sum the shards up."""
        return cls(
            rows=sum(shard.rows for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            predicted_tokens=sum(shard.predicted_tokens for shard in shards),
            bytes=sum(shard.bytes for shard in shards),
            shards=shards,
        )


@dataclass(frozen=True)
class TokenizerIdentity:
    """The tokenizer that wrote the ids. `begins_with`: what it puts before every document."""

    fingerprint: str
    vocab_size: int
    end_of_text_id: int
    begins_with: tuple[int, ...] = ()

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> TokenizerIdentity:
        """Read it back from JSON; data prepared before `begins_with` was kept has none."""
        return cls(**{**tree, "begins_with": tuple(tree.get("begins_with", ()))})


@dataclass(frozen=True)
class InputDigest:
    """A byte range of an input (`path` relative to its source folder) and those bytes' sha256."""

    path: str
    offset: int
    length: int
    sha256: str


@dataclass(frozen=True)
class BadInputs:
    """Records that were left out, with the first few named as "file:line: why"."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Contamination:
    """How much of the held-out text also stands in training text.

    `share` is over the positions of held-out n-grams (of `unit`s, inside one document);
    `distinct_share` counts each different n-gram once. `sampled` is the fraction of n-grams looked
    at, chosen by their hash.
    """

    n: int
    unit: str
    share: float
    distinct_share: float
    held_out: int
    sampled: float


@dataclass(frozen=True)
class ChatFacts:
    """What is particular to prepared conversations.

    `questions` is a file of held-out questions and their answers beside the shards, for scoring
    generated answers. `learned_tokens` and `conversations` are of training rows alone.
    """

    template_sha256: str
    end_of_turn_id: int
    conversations: int
    learned_tokens: int
    packing: float  # share of the rows' places that hold a token
    questions: str
    questions_sha256: str
    statistics: dict[str, Any]


@dataclass(frozen=True)
class PreferenceFacts:
    """What is particular to prepared preferences; `pairs` and `prompts` are of training rows alone."""

    template_sha256: str
    end_of_turn_id: int
    pairs: int
    prompts: int  # distinct ones: pairs of one prompt weigh 1 together
    statistics: dict[str, Any]


@dataclass(frozen=True)
class PromptsFacts:
    """What is particular to prepared prompts.

    `book` is a file of every prompt's messages, answer and verifier beside the shards, by the number
    that a row's `record` column holds. `prompts` is of training rows alone.
    """

    template_sha256: str
    end_of_turn_id: int
    prompts: int
    book: str
    book_sha256: str
    statistics: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """Everything `manifest.json` says; `digest`: sha256 of its canonical JSON without `digest`."""

    format_version: int
    name: str
    sequence_length: int
    row_group_rows: int
    dtype: str
    tokenizer: TokenizerIdentity
    splits: dict[str, Split]
    inputs: tuple[InputDigest, ...]
    documents: int
    bad_inputs: BadInputs
    contamination: Contamination | None
    config: dict[str, Any]
    kind: str = "text"  # of `rows.TOKEN_COLUMNS`
    chat: ChatFacts | None = None  # of kind "chat" alone
    preference: PreferenceFacts | None = None
    prompts: PromptsFacts | None = None
    digest: str = ""

    @property
    def messages(self) -> ChatFacts | PreferenceFacts | PromptsFacts | None:
        """What data made of messages has in common: a template and the token that ends a turn."""
        return self.chat or self.preference or self.prompts


@dataclass(frozen=True)
class Prepared:
    """A finished folder of tokenized shards and its verified manifest."""

    folder: Path
    manifest: Manifest

    @property
    def tokenizer_folder(self) -> Path:
        """The Hugging Face tokenizer folder inside this one."""
        return self.folder / TOKENIZER_FOLDER

    def shard_path(self, shard: Shard) -> Path:
        """Where a shard lies."""
        return self.folder / shard.path


def is_finished(folder: Path) -> bool:
    """Tell whether a prepared folder has its manifest. Raises StorageError where that isn't known."""
    return is_file(folder / MANIFEST_NAME)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Commit a prepared folder: write `manifest.json`, and return it with its digest filled in."""
    tree = asdict(manifest)
    del tree["digest"]
    digest = sha256_text(canonical_json(tree))
    tree["digest"] = digest
    write_atomic(folder / MANIFEST_NAME, canonical_json(tree) + "\n")
    return _from_tree(tree)


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` and verify its digest and version, without looking at the shards.

    Raises:
        DataError: no manifest, not JSON, another format version, or contents that don't match its
        digest.
        StorageError: it can't be read.
    """
    path = folder / MANIFEST_NAME
    try:
        tree = json.loads(read_text(path))
    except MISSING:
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
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format version {version!r}, this Raymill reads {FORMAT_VERSION}; {AGAIN} "
            "with this version."
        )
    stated = tree.pop("digest", None)
    found = sha256_text(canonical_json(tree))
    if stated != found:
        raise DataError(
            f"{path} was changed after it was written: it states digest {str(stated)[:12]}, its "
            f"contents have {found[:12]}; restore it, or delete it and {AGAIN}."
        )
    tree["digest"] = stated
    try:
        return _from_tree(tree)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} lacks or misspells an entry ({error}); delete it and {AGAIN}."
        ) from error


def load_prepared(folder: Path) -> Prepared:
    """Open a finished prepared folder, verifying manifest, tokenizer, and presence and size of
    every shard.

    Contents are verified later, row group by row group, by `shards.read_row_group`.

    Raises:
        DataError: names the file, what was expected and what was found.
        StorageError: a file can't be read.
    """
    manifest = read_manifest(folder)
    for split in manifest.splits.values():
        for shard in split.shards:
            check_shard_size(folder, shard)
    path = folder / TOKENIZER_FOLDER / "tokenizer.json"
    found = tokenizer_fingerprint(path)
    for name, sha256 in _files_beside(manifest):
        _check_file(folder / name, sha256)
    if found != manifest.tokenizer.fingerprint:
        raise DataError(
            f"{path} has fingerprint {found[:12]}, the manifest expects "
            f"{manifest.tokenizer.fingerprint[:12]}: it isn't the tokenizer that wrote these "
            f"shards; restore it, or delete {MANIFEST_NAME} and {AGAIN}."
        )
    return Prepared(folder, manifest)


def _files_beside(manifest: Manifest) -> list[tuple[str, str]]:
    """Files other than shards that the manifest vouches for, with their sha256."""
    chat, prompts = manifest.chat, manifest.prompts
    found = [] if chat is None else [(chat.questions, chat.questions_sha256)]
    return found if prompts is None else [*found, (prompts.book, prompts.book_sha256)]


def _check_file(path: Path, sha256: str) -> None:
    found = sha256_file(path) if is_file(path) else "nothing"
    if found != sha256:
        raise DataError(
            f"{path}: expected sha256 {sha256[:12]}, found {found[:12]}; restore it, or delete "
            f"{MANIFEST_NAME} and {AGAIN}."
        )


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer in a tokenizer.json.

    Raises:
        DataError: there is no such file, or it holds something else.
        StorageError: it can't be read.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(read_text(file))
    except StorageError:
        raise
    except Exception as error:  # `tokenizers` raises nothing narrower for a malformed file
        raise DataError(f"{file} isn't a tokenizer.json ({error}).") from error


def tokenizer_fingerprint(path: Path) -> str:
    """sha256 over a `tokenizer.json`'s canonical JSON: equal for equal tokenizers."""
    try:
        return sha256_text(canonical_json(json.loads(read_text(path))))
    except MISSING:
        raise DataError(f"{path} is missing; {AGAIN}.") from None
    except ValueError as error:
        raise DataError(f"{path} can't be read as JSON ({error}).") from error


def check_shard_size(folder: Path, shard: Shard) -> None:
    """Raise DataError unless the shard exists with the size its manifest states."""
    path = folder / shard.path
    found = status(path)
    if found is None:
        raise DataError(
            f"{path} is missing: the manifest lists it with {shard.file_bytes} bytes; restore it, "
            f"or delete {MANIFEST_NAME} and {AGAIN}."
        )
    if found.st_size != shard.file_bytes:
        what = "is truncated" if found.st_size < shard.file_bytes else "is too long"
        raise DataError(
            f"{path} {what}: expected {shard.file_bytes} bytes, found {found.st_size}; restore it, or "
            f"delete {MANIFEST_NAME} and {AGAIN}."
        )


def _from_tree(tree: Mapping[str, Any]) -> Manifest:
    """Build the dataclasses; unknown or missing entries surface as TypeError or KeyError."""
    values = dict(tree)
    splits = {
        name: Split(**{**split, "shards": tuple(Shard(**shard) for shard in split["shards"])})
        for name, split in values.pop("splits").items()
    }
    bad = values.pop("bad_inputs")
    contamination = values.pop("contamination")
    facts: dict[str, Any] = {}
    kinds = {"chat": ChatFacts, "preference": PreferenceFacts, "prompts": PromptsFacts}
    for name, cls in kinds.items():
        stored = values.pop(name, None)
        facts[name] = None if stored is None else cls(**stored)
    return Manifest(
        tokenizer=TokenizerIdentity.from_tree(values.pop("tokenizer")),
        splits=splits,
        inputs=tuple(InputDigest(**entry) for entry in values.pop("inputs")),
        bad_inputs=BadInputs(bad["count"], tuple(bad["examples"])),
        contamination=None if contamination is None else Contamination(**contamination),
        **facts,
        **values,
    )
