"""One unit of preparation: read its input ranges, encode, pack, and write at most one shard per
split.

A unit leaves a sidecar `units/00000.json` when its shards are on disk; a preparation that was
killed continues from the sidecars whose digest still matches. Everything here is a pure function of
the unit, the tokenizer and the settings, so any process may run it, at any time and any number of
times.
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
from typing import ClassVar, Protocol

from raymill.data.sources.documents import Document, DocumentParser
from raymill.data.sources.format import Bad
from raymill.data.sources.inputs import InputRange, Unit
from raymill.data.sources.records import read_records
from raymill.data.sources.registry import record_location
from raymill.data.store.manifest import TOKENIZER_FOLDER, InputDigest, Shard, TokenizerIdentity
from raymill.data.store.pack import Packer, dtype_for
from raymill.data.store.shards import ShardWriter
from raymill.data.store.split import TRAIN
from raymill.data.text import tokenizer as text_tokenizer
from raymill.data.text.encoder import BATCH_CHARACTERS, Encoder
from raymill.data.text.shuffle import BucketSettings, KeyRange, RunWriter
from raymill.durable import JsonObject, canonical_json, sha256_file, sha256_text, write_atomic
from raymill.errors import DataError
from raymill.reading import MISSING, read_text

UNITS_FOLDER = "units"
# Bad records that each unit names.
EXAMPLES = 20


class UnitSettings(Protocol):
    """Settings that all units of a preparation share, whatever its kind; a dataclass."""

    __dataclass_fields__: ClassVar[JsonObject]

    @property
    def folder(self) -> str:
        """Prepared folder."""
        ...

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Write the unit's shards."""
        ...


@dataclass(frozen=True)
class Settings:
    """Settings that all units of text share."""

    folder: str
    reading: DocumentParser
    tokenizer: TokenizerIdentity
    end_of_text: str
    sequence_length: int
    row_group_rows: int
    shuffle_documents: bool = False

    @property
    def dtype(self) -> str:
        """Storage type of the token ids."""
        return dtype_for(self.tokenizer.vocab_size)

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Read, encode, pack and write."""
        return _TextUnit(index, unit, self).run()


@dataclass(frozen=True)
class UnitResult:
    """Output and input of a unit.

    `bytes_read` are bytes of input, `records` includes bad ones; `facts` are additions of its kind,
    as JSON values.
    """

    index: int
    shards: dict[str, Shard]
    inputs: tuple[InputDigest, ...]
    documents: int
    records: int
    bad: int
    bad_examples: tuple[str, ...]
    bytes_read: int
    facts: JsonObject = field(default_factory=dict)


def unit_digest(index: int, unit: Unit, settings: UnitSettings) -> str:
    """Return the digest of a unit; equal ones give equal shards. Files count by size and
    modification time."""
    shared = asdict(settings)
    # The same unit in another folder has the same bytes.
    del shared["folder"]
    # Units that were finished before documents were shuffled keep their digests.
    if not shared.get("shuffle_documents"):
        shared.pop("shuffle_documents", None)
    spans = [span.to_tree() for span in unit]
    return sha256_text(canonical_json({"index": index, "unit": spans, "settings": shared}))


def finished(index: int, unit: Unit, settings: UnitSettings) -> UnitResult | None:
    """Return the result of an earlier run of this unit, if it is complete and its shards are whole.

    Raises:
        StorageError: a file can't be read, so that nothing is known.
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
        for run in result.facts.get("runs", ()):
            if sha256_file(folder / run["path"]) != run["sha256"]:
                return None
    except (*MISSING, ValueError, KeyError, TypeError):
        return None
    return result


def run_unit(index: int, unit: Unit, settings: UnitSettings) -> UnitResult:
    """Write the unit's shards, then its sidecar.

    Raises:
        DataError: an input is gone, has changed, or is damaged beyond single records.
    """
    result = settings.work(index, unit)
    tree = {"unit_digest": unit_digest(index, unit, settings), "result": asdict(result)}
    sidecar = _sidecar(Path(settings.folder), index)
    sidecar.parent.mkdir(exist_ok=True)
    write_atomic(sidecar, canonical_json(tree) + "\n")
    return result


class _TextUnit:
    """Counters and open shards of a running unit."""

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
        runs = RunWriter(Path(settings.folder), self._index, settings.reading.seed, settings.dtype)
        with ExitStack() as stack:
            for batch in _batches(self._texts()):
                encoded = encoder.encode([record.text for _, record in batch])
                for (span, record), document in zip(batch, encoded, strict=True):
                    split = record.split
                    if document.problem:
                        location = record_location(span, record.place.number)
                        self._count_bad(location, document.problem)
                        continue
                    # An empty text isn't bad, but there is nothing to learn from it.
                    if not len(document.ids):
                        continue
                    if split == TRAIN and settings.shuffle_documents:
                        self._documents += 1
                        runs.add(f"{span.name}@{span.offset}", document.ids, document.token_bytes)
                        continue
                    if split not in writers:
                        packers[split] = self._packer()
                        writers[split] = stack.enter_context(self._writer(split))
                    self._documents += 1
                    for group in packers[split].add(document.ids, document.token_bytes):
                        writers[split].write(group)
            # The last, partial group of each split is written when all documents are packed.
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
            bytes_read=sum(span.length for span in self._unit),
            facts={"runs": [asdict(run) for run in runs.finish()]}
            if settings.shuffle_documents
            else {},
        )

    def _texts(self) -> Iterator[tuple[InputRange, Document]]:
        for span in self._unit:
            digest = hashlib.sha256()
            for record in read_records(span, self._settings.reading, digest):
                if isinstance(record, Bad):
                    self._records += record.count
                    self._count_bad(record.where, record.why, record.count)
                else:
                    self._records += 1
                    yield span, record
            self._inputs.append(
                InputDigest(span.name, span.offset, span.length, digest.hexdigest())
            )

    def _count_bad(self, location: str, why: str, count: int = 1) -> None:
        self._bad += count
        if len(self._examples) < EXAMPLES:
            self._examples.append(f"{location}: {why}")

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
    records: Iterator[tuple[InputRange, Document]],
) -> Iterator[list[tuple[InputRange, Document]]]:
    """Yield lists of about BATCH_CHARACTERS."""
    batch: list[tuple[InputRange, Document]] = []
    size = 0
    for pair in records:
        batch.append(pair)
        size += len(pair[1].text)
        if size >= BATCH_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@lru_cache(maxsize=2)
def _encoder(folder: str, expected: TokenizerIdentity, end_of_text: str) -> Encoder:
    # Ray gives a unit one core; the library's own threads would compete with the other units.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = text_tokenizer.load(Path(folder) / TOKENIZER_FOLDER, end_of_text)
    actual = text_tokenizer.identity(tokenizer, end_of_text)
    if actual != expected:
        raise DataError(
            f"{folder}/{TOKENIZER_FOLDER} changed while text was being encoded: expected "
            f"fingerprint {expected.fingerprint[:12]}, found {actual.fingerprint[:12]}."
        )
    return Encoder(tokenizer, expected.end_of_text_id)


def pack_bucket(bucket: KeyRange, settings: BucketSettings) -> Shard | None:
    """Write a bucket's shard and its sidecar, unless an earlier run has; None if it has no documents."""
    folder = Path(settings.folder)
    sidecar = folder / UNITS_FOLDER / f"bucket-{bucket.number:05d}.json"
    digest = settings.digest(bucket)
    try:
        tree = json.loads(read_text(sidecar))
        if tree["digest"] == digest:
            if tree["shard"] is None:
                return None
            earlier = Shard(**tree["shard"])
            if sha256_file(folder / earlier.path) == earlier.sha256:
                return earlier
    except (*MISSING, ValueError, KeyError, TypeError):
        pass
    shard = settings.pack(bucket)
    described = None if shard is None else asdict(shard)
    write_atomic(sidecar, canonical_json({"digest": digest, "shard": described}) + "\n")
    return shard


def _sidecar(folder: Path, index: int) -> Path:
    return folder / UNITS_FOLDER / f"{index:05d}.json"


def _result_from_tree(tree: JsonObject) -> UnitResult:
    return UnitResult(
        **{
            **tree,
            "shards": {split: Shard(**shard) for split, shard in tree["shards"].items()},
            "inputs": tuple(InputDigest(**entry) for entry in tree["inputs"]),
            "bad_examples": tuple(tree["bad_examples"]),
        }
    )
