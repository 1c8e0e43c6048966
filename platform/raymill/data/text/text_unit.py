"""A unit of text: read its input ranges, encode, pack, and write at most one shard per split, or runs of
training documents that will be shuffled."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from raymill.data.sources.documents import Document, DocumentParser
from raymill.data.sources.format import Bad, Skipped
from raymill.data.sources.inputs import InputRange, Unit
from raymill.data.sources.records import read_records
from raymill.data.sources.registry import format_named, record_location
from raymill.data.sources.selected_documents import (
    HELD_OUT,
    SPLITS,
    TRAINED,
    SelectedDocuments,
    selected_documents,
)
from raymill.data.store.lineage import Origin
from raymill.data.store.manifest import TOKENIZER_FOLDER, InputDigest, TokenizerIdentity
from raymill.data.store.pack import dtype_for
from raymill.data.store.split import TRAIN
from raymill.data.text import tokenizer as text_tokenizer
from raymill.data.text.encoder import BATCH_CHARACTERS, Encoded, Encoder
from raymill.data.text.fertility import Fertility, words
from raymill.data.text.kept_documents import KeptDocuments
from raymill.data.text.live import LIVE_FOLDER, CountingDigest, LiveNote
from raymill.data.text.runs import DocumentNote, Run, RunWriter
from raymill.data.text.shard_packer import CONCATENATE, RowSettings, ShardPacker
from raymill.data.text.unit import UnitResult
from raymill.errors import DataError

if TYPE_CHECKING:
    import hashlib

# Bad records that each unit names.
EXAMPLES = 20


@dataclass(frozen=True)
class Settings:
    """Settings that all units of text share."""

    needed_facts: ClassVar[frozenset[str]] = frozenset({"fertility", "packed"})

    folder: str
    reading: DocumentParser
    tokenizer: TokenizerIdentity
    end_of_text: str
    sequence_length: int
    row_group_rows: int
    shuffle_documents: bool = False
    packing: str = CONCATENATE
    engine: str = "auto"

    @property
    def dtype(self) -> str:
        """Storage type of the token ids."""
        return dtype_for(self.tokenizer.vocab_size)

    def rows(self, split: str) -> RowSettings:
        """Return the settings of a split's rows; held-out rows are those of concatenated documents."""
        return RowSettings(
            folder=self.folder,
            tokenizer=self.tokenizer,
            sequence_length=self.sequence_length,
            row_group_rows=self.row_group_rows,
            packing=self.packing if split == TRAIN else CONCATENATE,
        )

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Read, encode, pack and write."""
        if unit[0].format == SelectedDocuments.name:
            return _CorpusUnit(index, unit, self).run()
        return _TextUnit(index, unit, self).run()


class _TextUnit:
    """Counters and open shards of a running unit."""

    def __init__(self, index: int, unit: Unit, settings: Settings) -> None:
        self._index, self._unit, self._settings = index, unit, settings
        self._inputs: list[InputDigest] = []
        self._examples: list[str] = []
        self._documents = self._records = self._bad = self._tokens = 0
        self._skipped: Counter[str] = Counter()
        self._fertility = Fertility()
        self._packers: dict[str, ShardPacker] = {}
        self._runs = RunWriter(
            Path(settings.folder), f"{index:05d}", settings.reading.seed, settings.dtype
        )
        # Input before the range that is being read, and the digest of that range.
        self._read, self._digest = 0, CountingDigest()

    def run(self) -> UnitResult:
        settings = self._settings
        encoder = _encoder(
            settings.folder, settings.tokenizer, settings.end_of_text, settings.engine
        )
        with ExitStack() as stack:
            self._encode(encoder, stack)
            runs = self._finish_runs(stack)
            # The last, partial group of each split is written when all documents are packed.
            packed = {split: self._packers[split].finish() for split in sorted(self._packers)}
        return UnitResult(
            index=self._index,
            shards={split: one.shard for split, one in packed.items()},
            inputs=tuple(self._inputs),
            documents=self._documents,
            records=self._records,
            bad=self._bad,
            bad_examples=tuple(self._examples),
            bytes_read=sum(span.length for span in self._unit),
            facts={
                "fertility": self._fertility.to_json(),
                "packed": {split: asdict(one) for split, one in packed.items()},
                **({"skipped": dict(sorted(self._skipped.items()))} if self._skipped else {}),
                **({"runs": [asdict(run) for run in runs]} if settings.shuffle_documents else {}),
            },
        )

    def _encode(self, encoder: Encoder, stack: ExitStack) -> None:
        with LiveNote(Path(self._settings.folder) / LIVE_FOLDER, self._index) as note:
            for batch in _batches(self._texts()):
                pieces = encoder.pieces([record.text for _, record in batch])
                for span, record in batch:
                    self._take(span, record, pieces, stack)
                note.write(self._read + self._digest.bytes, self._tokens)

    def _finish_runs(self, stack: ExitStack) -> tuple[Run, ...]:
        return self._runs.finish()

    def _take(
        self, span: InputRange, record: Document, pieces: Iterator[Encoded], stack: ExitStack
    ) -> None:
        """Take a document's pieces, and put them where its split is packed."""
        tokens = 0
        for piece in pieces:
            if piece.problem:
                self._count_bad(record_location(span, record.place.number), piece.problem)
            # An empty text isn't bad, but there is nothing to learn from it.
            elif len(piece.ids):
                self._pack(span, record, piece, stack)
                tokens += len(piece.ids)
            if piece.ends:
                break
        if tokens:
            self._documents += 1
            self._tokens += tokens
            self._fertility.add(record.source, record.language, record.text, tokens)

    def _pack(self, span: InputRange, record: Document, piece: Encoded, stack: ExitStack) -> None:
        place = record.place
        origin = Origin(record.file or span.name, place.offset, place.length, place.sha256)
        if record.split == TRAIN and self._settings.shuffle_documents:
            self._runs.add(f"{span.name}@{span.offset}", piece, origin)
            return
        packer = self._packer(record.split, stack)
        packer.add(origin, piece.ids, piece.token_bytes, ends=piece.ends)

    def _packer(self, split: str, stack: ExitStack) -> ShardPacker:
        if split not in self._packers:
            path = f"{split}/{self._index:05d}.parquet"
            packer = ShardPacker(path, self._settings.rows(split), self._index)
            self._packers[split] = stack.enter_context(packer)
        return self._packers[split]

    def _texts(self) -> Iterator[tuple[InputRange, Document]]:
        for span in self._unit:
            self._digest = CountingDigest()
            digest = cast("hashlib._Hash", self._digest)
            for record in read_records(span, self._settings.reading, digest):
                if isinstance(record, Skipped):
                    self._skipped[record.cause] += 1
                elif isinstance(record, Bad):
                    self._records += record.count
                    self._count_bad(record.where, record.why, record.count)
                else:
                    self._records += 1
                    yield span, record
            self._read += self._digest.bytes
            sha256 = self._digest.hexdigest()
            self._digest = CountingDigest()
            self._inputs.append(InputDigest(span.name, span.offset, span.length, sha256))

    def _count_bad(self, location: str, why: str, count: int = 1) -> None:
        self._bad += count
        if len(self._examples) < EXAMPLES:
            self._examples.append(f"{location}: {why}")


class _CorpusUnit(_TextUnit):
    """Unit of a corpus: its documents are encoded once, and packed as they are selected now."""

    def __init__(self, index: int, unit: Unit, settings: Settings) -> None:
        super().__init__(index, unit, settings)
        [self._span] = unit
        seed = settings.reading.seed
        self._kept = KeptDocuments(self._span, settings.tokenizer, seed)
        self._missing = self._kept.missing()
        self._runs = self._kept.writer(seed, settings.dtype)

    def _texts(self) -> Iterator[tuple[InputRange, Document]]:
        self._records = int((self._kept.selection > 0).sum())
        if self._missing.any():
            for document in selected_documents(Path(self._span.path), self._missing):
                yield self._span, document

    def _pack(self, span: InputRange, record: Document, piece: Encoded, stack: ExitStack) -> None:
        place = record.place
        origin = Origin(record.file, place.offset, place.length, place.sha256)
        row = -1 if place.number is None else place.number
        count = words(record.text.encode())
        note = DocumentNote(row, record.source, record.language, count)
        self._runs.add(f"documents/{Path(span.path).stem}", piece, origin, note)

    def _finish_runs(self, stack: ExitStack) -> tuple[Run, ...]:
        """Keep what was encoded now, and pack what is selected of everything that is kept."""
        self._kept.add(self._runs.finish())
        self._pack_split(HELD_OUT, stack)
        if not self._settings.shuffle_documents:
            self._pack_split(TRAINED, stack)
        self._fertility = self._kept.fertility()
        self._documents = sum(values[0] for values in self._fertility.counts.values())
        digest = CountingDigest()
        for content in format_named(self._span.format).range_bytes(self._span):
            digest.update(content)
        span = self._span
        self._inputs = [InputDigest(span.name, span.offset, span.length, digest.hexdigest())]
        return self._kept.selected(TRAINED)

    def _pack_split(self, selected: int, stack: ExitStack) -> None:
        for entry in self._kept.entries(selected):
            packer = self._packer(SPLITS[selected], stack)
            packer.add(entry.origin, entry.ids, entry.token_bytes, ends=entry.ends)


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
def _encoder(folder: str, expected: TokenizerIdentity, end_of_text: str, engine: str) -> Encoder:
    # Ray gives a unit one core; the library's own threads would compete with the other units.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = text_tokenizer.load(Path(folder) / TOKENIZER_FOLDER, end_of_text)
    actual = text_tokenizer.identity(tokenizer, end_of_text)
    if actual != expected:
        raise DataError(
            f"{folder}/{TOKENIZER_FOLDER} changed while text was being encoded: expected "
            f"fingerprint {expected.fingerprint[:12]}, found {actual.fingerprint[:12]}."
        )
    return Encoder(tokenizer, expected.end_of_text_id, engine)
