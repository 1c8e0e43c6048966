"""One unit of work: read its pieces, encode, pack, and write at most one shard a split.

A unit leaves a sidecar `units/00000.json` when its shards are on disk; a preparation that was
killed continues from the sidecars whose digest still fits. Everything here is a pure function of
the unit, the tokenizer and the settings, so it doesn't matter who runs it, when, or how often.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

from raymill.data.store.manifest import TOKENIZER_FOLDER, InputDigest, Shard, TokenizerIdentity
from raymill.data.store.pack import Packer, dtype_for
from raymill.data.store.shards import ShardWriter
from raymill.data.text import tokenizer as tokenizers_room
from raymill.data.text.places import place_of
from raymill.data.text.records import Bad, Document, Reading, read_records
from raymill.data.text.sources import Piece, Unit
from raymill.durable import canonical_json, sha256_file, sha256_text, write_atomic
from raymill.errors import DataError
from raymill.reading import MISSING, read_text

UNITS_FOLDER = "units"
EXAMPLES = 20  # bad records named for each unit


class UnitSettings(Protocol):
    """What every unit of a preparation shares, whatever its kind; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def folder(self) -> str:
        """The prepared folder."""
        ...

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Write the unit's shards."""
        ...


@dataclass(frozen=True)
class Settings:
    """What every unit of text shares."""

    folder: str
    reading: Reading
    tokenizer: TokenizerIdentity
    end_of_text: str
    sequence_length: int
    row_group_rows: int

    @property
    def dtype(self) -> str:
        """Storage type of the token ids."""
        return dtype_for(self.tokenizer.vocab_size)

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Read, encode, pack and write."""
        return _Work(index, unit, self).run()


@dataclass(frozen=True)
class UnitResult:
    """What a unit wrote and read. `bytes_read` are bytes of input, `records` includes bad ones;
    `facts` is what its kind adds, as JSON values."""

    index: int
    shards: dict[str, Shard]
    inputs: tuple[InputDigest, ...]
    documents: int
    records: int
    bad: int
    bad_examples: tuple[str, ...]
    bytes_read: int
    facts: dict[str, Any] = field(default_factory=dict)


def unit_digest(index: int, unit: Unit, settings: UnitSettings) -> str:
    """Equal digests give equal shards; files count by size and modification time."""
    shared = asdict(settings)
    del shared["folder"]
    pieces = [asdict(piece) for piece in unit]
    return sha256_text(canonical_json({"index": index, "unit": pieces, "settings": shared}))


def finished(index: int, unit: Unit, settings: UnitSettings) -> UnitResult | None:
    """The result of an earlier run of this unit, if it is complete and its shards are whole.

    Raises:
        StorageError: that can't be known.
    """
    folder = Path(settings.folder)
    try:
        tree = json.loads(read_text(_sidecar(folder, index)))
        if tree["unit_digest"] != unit_digest(index, unit, settings):
            return None
        result = _result_from_tree(tree["result"])
        for shard in result.shards.values():
            if sha256_file(folder / shard.path) != shard.sha256:
                return None
    except (*MISSING, ValueError, KeyError, TypeError):
        return None
    return result


def run_unit(index: int, unit: Unit, settings: UnitSettings) -> UnitResult:
    """Write the unit's shards, then its sidecar.

    Raises:
        DataError: an input is gone, changed or damaged beyond single records.
    """
    result = settings.work(index, unit)
    tree = {"unit_digest": unit_digest(index, unit, settings), "result": asdict(result)}
    sidecar = _sidecar(Path(settings.folder), index)
    sidecar.parent.mkdir(exist_ok=True)
    write_atomic(sidecar, canonical_json(tree) + "\n")
    return result


class _Work:
    """The counters and open shards of a running unit."""

    def __init__(self, index: int, unit: Unit, settings: Settings) -> None:
        self._index, self._unit, self._settings = index, unit, settings
        self._inputs: list[InputDigest] = []
        self._examples: list[str] = []
        self._documents = self._records = self._bad = 0

    def run(self) -> UnitResult:
        settings = self._settings
        encoder = _encoder(settings.folder, settings.tokenizer, settings.end_of_text)
        packers: dict[str, Packer] = {}
        writers: dict[str, ShardWriter] = {}
        with ExitStack() as stack:
            for batch in _batches(self._texts()):
                encoded = encoder.encode([record.text for _, record in batch])
                for (piece, record), document in zip(batch, encoded, strict=True):
                    split = record.split
                    if document.problem:
                        number = record.number
                        where = piece.name if number is None else place_of(piece, number)
                        self._told_bad(where, document.problem)
                        continue
                    if not len(document.ids):
                        continue  # an empty text: nothing to learn from, nothing wrong
                    if split not in writers:
                        packers[split] = self._packer()
                        writers[split] = stack.enter_context(self._writer(split))
                    self._documents += 1
                    for group in packers[split].add(document.ids, document.token_bytes):
                        writers[split].write(group)
            for split, writer in writers.items():
                for group in packers[split].finish():
                    writer.write(group)
            shards = {split: writers[split].finish() for split in sorted(writers)}
        return UnitResult(
            index=self._index,
            shards=shards,
            inputs=tuple(self._inputs),
            documents=self._documents,
            records=self._records,
            bad=self._bad,
            bad_examples=tuple(self._examples),
            bytes_read=sum(piece.length for piece in self._unit),
        )

    def _texts(self) -> Iterator[tuple[Piece, Document]]:
        for piece in self._unit:
            digest = hashlib.sha256()
            for record in read_records(piece, self._settings.reading, digest):
                if isinstance(record, Bad):
                    self._records += record.count
                    self._told_bad(record.where, record.why, record.count)
                else:
                    self._records += 1
                    yield piece, record
            self._inputs.append(
                InputDigest(piece.name, piece.offset, piece.length, digest.hexdigest())
            )

    def _told_bad(self, where: str, why: str, count: int = 1) -> None:
        self._bad += count
        if len(self._examples) < EXAMPLES:
            self._examples.append(f"{where}: {why}")

    def _packer(self) -> Packer:
        settings = self._settings
        return Packer(
            sequence_length=settings.sequence_length,
            row_group_rows=settings.row_group_rows,
            end_of_text_id=settings.tokenizer.end_of_text_id,
            begins_with=settings.tokenizer.begins_with,
            dtype=settings.dtype,
        )

    def _writer(self, split: str) -> ShardWriter:
        return ShardWriter(
            Path(self._settings.folder),
            f"{split}/{self._index:05d}.parquet",
            dtype=self._settings.dtype,
            sequence_length=self._settings.sequence_length,
        )


def _batches(
    records: Iterator[tuple[Piece, Document]],
) -> Iterator[list[tuple[Piece, Document]]]:
    """Lists of about BATCH_CHARACTERS."""
    batch: list[tuple[Piece, Document]] = []
    size = 0
    for pair in records:
        batch.append(pair)
        size += len(pair[1].text)
        if size >= tokenizers_room.BATCH_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=2)
def _encoder(folder: str, expected: TokenizerIdentity, end_of_text: str) -> tokenizers_room.Encoder:
    # Ray gives a unit one core; the library's own threads would fight the other units for theirs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = tokenizers_room.load(Path(folder) / TOKENIZER_FOLDER, end_of_text)
    found = tokenizers_room.identity(tokenizer, end_of_text)
    if found != expected:
        raise DataError(
            f"{folder}/{TOKENIZER_FOLDER} changed while text was being encoded: expected "
            f"fingerprint {expected.fingerprint[:12]}, found {found.fingerprint[:12]}."
        )
    return tokenizers_room.Encoder(tokenizer, expected.end_of_text_id)


def _sidecar(folder: Path, index: int) -> Path:
    return folder / UNITS_FOLDER / f"{index:05d}.json"


def _result_from_tree(tree: dict[str, Any]) -> UnitResult:
    return UnitResult(
        **{
            **tree,
            "shards": {split: Shard(**shard) for split, shard in tree["shards"].items()},
            "inputs": tuple(InputDigest(**entry) for entry in tree["inputs"]),
            "bad_examples": tuple(tree["bad_examples"]),
        }
    )
