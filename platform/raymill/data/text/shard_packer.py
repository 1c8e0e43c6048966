"""Pack documents into one shard, with the lineage of its rows.

Concatenated, documents are cut wherever a row ends; by best fit, only those that are longer than a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from raymill.data.sources.counters import Counters
from raymill.data.store.best_fit import best_fit, chunks
from raymill.data.store.hashing import hash_key, random_permutation
from raymill.data.store.lineage import LineageWriter, Origin
from raymill.data.store.manifest import Shard, TokenizerIdentity
from raymill.data.store.pack import Packer, RowGroup, document_prefix, dtype_for
from raymill.data.store.shards import ShardWriter
from raymill.data.store.tables import TableFile
from raymill.durable import JsonObject

CONCATENATE, BEST_FIT = "concatenate", "best_fit"

Tokens = NDArray[np.integer]


@dataclass(frozen=True)
class RowSettings:
    """Settings of the rows that documents become; `packing` is `data.packing`."""

    folder: str
    tokenizer: TokenizerIdentity
    sequence_length: int
    row_group_rows: int
    packing: str

    @property
    def dtype(self) -> str:
        """Storage type of the token ids."""
        return dtype_for(self.tokenizer.vocab_size)


@dataclass
class PackingCounts(Counters):
    """Counts of packed documents: `cut` are in more than one row, `longer` have more tokens than a row
    predicts; `positions` could be predicted in the rows, of which `predicted` are."""

    documents: int = 0
    cut: int = 0
    longer: int = 0
    positions: int = 0
    predicted: int = 0


@dataclass(frozen=True)
class PackedShard:
    """Shard, its lineage, and its counts as JSON."""

    shard: Shard
    lineage: TableFile
    counts: JsonObject

    @classmethod
    def from_tree(cls, tree: JsonObject) -> PackedShard:
        """Read it from JSON."""
        return cls(Shard(**tree["shard"]), TableFile(**tree["lineage"]), tree["counts"])


class ShardPacker:
    """Writer of one shard from documents, in their order."""

    def __init__(self, path: str, settings: RowSettings, number: int) -> None:
        folder = Path(settings.folder)
        self._settings = settings
        self._writer = ShardWriter(
            folder, path, dtype=settings.dtype, sequence_length=settings.sequence_length
        )
        self._lineage = LineageWriter(folder, path, settings.sequence_length)
        self._counts = PackingCounts()
        self._stack = ExitStack()
        self._rows: _Stream | _BestFitRows = (
            _Stream(self) if settings.packing == CONCATENATE else _BestFitRows(self, number)
        )

    def __enter__(self) -> Self:
        self._stack.enter_context(self._writer)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add(self, origin: Origin, ids: Tokens, token_bytes: Tokens, *, ends: bool = True) -> None:
        """Append a document or a piece of one: ids [n], and the bytes of text behind each [n]."""
        self._rows.add(origin, ids, token_bytes, ends)

    def finish(self) -> PackedShard:
        """Write the rest and put the files in place."""
        self._rows.finish()
        lineage = self._lineage.finish()
        shard = self._writer.finish()
        self._counts.positions = shard.rows * self._settings.sequence_length
        self._counts.predicted = shard.predicted_tokens
        return PackedShard(shard, lineage, self._counts.to_json())


class _Stream:
    """Rows of concatenated documents."""

    def __init__(self, shard: ShardPacker) -> None:
        settings = shard._settings
        self._shard = shard
        self._length = settings.sequence_length
        self._packer = Packer(
            sequence_length=settings.sequence_length,
            row_group_rows=settings.row_group_rows,
            end_of_text_id=settings.tokenizer.end_of_text_id,
            begins_with=settings.tokenizer.begins_with,
            dtype=settings.dtype,
        )
        # Where the document that is being added begins.
        self._start: int | None = None

    def add(self, origin: Origin, ids: Tokens, token_bytes: Tokens, ends: bool) -> None:
        if self._start is None:
            self._packer.begin()
            self._start = self._packer.position
        for group in self._packer.add(ids, token_bytes, begins=False, ends=ends):
            self._shard._writer.write(group)
        if not ends:
            return
        # The end-of-text token is no part of the document.
        start, stop = self._start, self._packer.position - 1
        self._start = None
        self._shard._lineage.add(origin, start, stop)
        counts = self._shard._counts
        counts.documents += 1
        counts.cut += (start - 1) // self._length != (stop - 1) // self._length
        counts.longer += stop - start > self._length

    def finish(self) -> None:
        for group in self._packer.finish():
            self._shard._writer.write(group)


class _BestFitRows:
    """Rows by best fit, in a random order; the documents' arrays are kept until all are known."""

    def __init__(self, shard: ShardPacker, number: int) -> None:
        settings = shard._settings
        self._shard = shard
        self._number = number
        self._dtype = np.dtype(settings.dtype)
        identity = settings.tokenizer
        self._end = np.array([identity.end_of_text_id], dtype=self._dtype)
        prefix = document_prefix(identity.begins_with, identity.end_of_text_id)
        self._prefix = np.array(prefix, dtype=self._dtype)
        self._origins: list[Origin] = []
        self._pieces: list[list[tuple[Tokens, Tokens]]] = []
        self._open = False

    def add(self, origin: Origin, ids: Tokens, token_bytes: Tokens, ends: bool) -> None:
        if not self._open:
            self._origins.append(origin)
            self._pieces.append([])
        self._pieces[-1].append((ids, token_bytes))
        self._open = not ends
        if ends and len(self._pieces[-1]) > 1:
            self._pieces[-1] = [
                (np.concatenate([i for i, _ in pieces]), np.concatenate([b for _, b in pieces]))
                for pieces in (self._pieces[-1],)
            ]

    def finish(self) -> None:
        length = self._shard._settings.sequence_length
        lengths = np.array([sum(len(i) for i, _ in p) for p in self._pieces], dtype=np.int64)
        cut = chunks(lengths, len(self._prefix), length)
        counts = self._shard._counts
        counts.documents = len(lengths)
        counts.longer = int((lengths > length).sum())
        counts.cut = int((lengths + len(self._prefix) > length).sum())
        rows = best_fit(cut[:, 2], length)
        # The rows with the longest documents come first otherwise.
        order = random_permutation(len(rows), hash_key(self._number)).tolist()
        # A chunk that continues a document goes first, where the token before it can stand before it.
        chosen = [sorted(rows[row], key=lambda chunk: -cut[chunk, 1]) for row in order]
        group = self._shard._settings.row_group_rows
        for first in range(0, len(chosen), group):
            self._write(first, [cut[row] for row in chosen[first : first + group]])

    def _write(self, first_row: int, rows: Sequence[NDArray[np.int64]]) -> None:
        tokens, lengths, sizes = list[Tokens](), list[int](), list[int]()
        parts = list[tuple[int, int, int, int, int]]()
        for number, row in enumerate(rows, first_row):
            document, begin, _ = row[0].tolist()
            tokens.append(self._slice(document, begin - 1, 1)[0] if begin else self._end)
            position, text_bytes = 1, 0
            for document, begin, size in row.tolist():
                ids, token_bytes = self._slice(document, begin, size)
                tokens.append(ids)
                text_bytes += int(token_bytes.sum(dtype=np.int64))
                parts += self._part(number, position, document, begin, size)
                position += size
            lengths.append(position)
            sizes.append(text_bytes)
        self._shard._writer.write(
            RowGroup(
                np.concatenate(tokens).astype(self._dtype, copy=False),
                np.array(lengths, dtype=np.int32),
                np.array(sizes, dtype=np.int32),
            )
        )
        self._shard._lineage.add_parts(np.array(parts, dtype=np.int64), self._origins)

    def _part(
        self, row: int, position: int, document: int, begin: int, size: int
    ) -> Iterator[tuple[int, int, int, int, int]]:
        """Yield the lineage of a chunk, without the prefix and the end-of-text token in it."""
        prefix = len(self._prefix)
        first = max(begin, prefix)
        last = min(begin + size, prefix + self._tokens(document))
        if first < last:
            shift = position - begin
            yield row, first + shift, last + shift, first - prefix, document

    def _tokens(self, document: int) -> int:
        return sum(len(ids) for ids, _ in self._pieces[document])

    def _slice(self, document: int, begin: int, size: int) -> tuple[Tokens, Tokens]:
        """Return tokens [begin, begin + size) of prefix, document and end of text, and their bytes."""
        pieces = self._pieces[document]
        ids, token_bytes = (
            pieces[0] if len(pieces) == 1 else (_joined(pieces, 0), _joined(pieces, 1))
        )
        start = begin - len(self._prefix)
        stop = start + size
        before = self._prefix[begin : begin + size]
        after = self._end if stop > len(ids) else self._end[:0]
        inside = slice(max(start, 0), min(stop, len(ids)))
        none = np.zeros(len(before), np.uint8), np.zeros(len(after), np.uint8)
        return (
            np.concatenate([before, ids[inside], after]),
            np.concatenate([none[0], token_bytes[inside], none[1]]),
        )


def _joined(pieces: Sequence[tuple[Tokens, Tokens]], column: int) -> Tokens:
    return np.concatenate([piece[column] for piece in pieces])
