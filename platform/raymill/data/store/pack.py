"""Pack documents into rows of one length.

The stream EOT d1 EOT d2 … dn EOT (or BOS d1 EOT BOS d2 EOT …, where the tokenizer begins a text
with a token of its own) is cut with an overlap of one token. Legend: T sequence length (predictions
per row), R rows. A row holds T + 1 tokens; its last token is the first of the next row, so every
token but the stream's first is predicted exactly once, and none is padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.rows import AnyArray

# Bytes that a row group adds to its shard's footer, measured on shards of text.
FOOTER_BYTES = 140
# Share of a row group's bytes that may be read as footer, whenever one is read from another shard.
FOOTER_SHARE = 0.02
# Row groups that a corpus has at least; each gives a row to a global batch.
LEAST_GROUPS = 1 << 14
LEAST_ROWS = 8


@dataclass(frozen=True)
class RowGroup:
    """Rows that are written, and later read, together.

    tokens: flat, the rows one after the other; length: int32 [R], tokens per row; bytes: int32 [R],
    UTF-8 bytes of the text behind tokens[1:] of each row (an end-of-text token stands for none);
    by_token: further values per token, flat like tokens (`rows.TOKEN_COLUMNS`); by_row: further
    values per row, [R] (`rows.ROW_COLUMNS`).
    """

    tokens: NDArray[np.unsignedinteger]
    length: NDArray[np.int32]
    bytes: NDArray[np.int32]
    by_token: dict[str, AnyArray] = field(default_factory=dict)
    by_row: dict[str, AnyArray] = field(default_factory=dict)


def dtype_for(vocab_size: int) -> str:
    """Return the narrowest storage type that holds every id of a vocabulary: "uint16" or
    "uint32"."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def row_group_rows(row_bytes: int, shard_bytes: int, corpus_bytes: int) -> int:
    """Return the rows of a row group by size: 1 MiB or more, less in a corpus below 16 GiB.

    A shard of s bytes in groups of g has a footer of s/g entries, and about one is read per group:
    g ≥ √(s · FOOTER_BYTES / FOOTER_SHARE) bounds its share. Sizes before compression, in bytes;
    those of text before it is tokenized are near enough.
    """
    for_footers = math.isqrt(round(shard_bytes * FOOTER_BYTES / FOOTER_SHARE))
    group_bytes = min(max(1 << 20, for_footers), corpus_bytes // LEAST_GROUPS)
    return max(LEAST_ROWS, group_bytes // row_bytes)


def document_prefix(begins_with: Sequence[int], end_of_text_id: int) -> tuple[int, ...]:
    """Return the ids before a document, besides the end-of-text token of the previous document."""
    return () if tuple(begins_with) == (end_of_text_id,) else tuple(begins_with)


class Packer:
    """Packer of one shard's documents; yields full row groups as they fill.

    Memory: one row group and the current document.
    """

    def __init__(
        self,
        *,
        sequence_length: int,
        row_group_rows: int,
        end_of_text_id: int,
        dtype: str,
        begins_with: Sequence[int] = (),
    ) -> None:
        self._length = sequence_length
        self._rows = row_group_rows
        self._dtype = np.dtype(dtype)
        self._end_of_text = np.array([end_of_text_id], dtype=self._dtype)
        self._prefix = np.array(document_prefix(begins_with, end_of_text_id), dtype=self._dtype)
        # Tokens not yet yielded. The previous row has already predicted the first of them (or it is
        # the shard's first), so its bytes are never counted again.
        self._tokens: list[NDArray[np.unsignedinteger]] = []
        self._bytes: list[NDArray[np.integer]] = []
        self._pending = 0
        # Number of tokens in the stream so far.
        self.position = 0

    def add(
        self,
        tokens: NDArray[np.integer],
        token_bytes: NDArray[np.integer],
        *,
        begins: bool = True,
        ends: bool = True,
    ) -> Iterator[RowGroup]:
        """Append a document: ids [n], and for each id the bytes of text that it stands for [n].

        A document may come in pieces, of which only the first begins it and only the last ends it.
        Consume the iterator: rows are yielded while it runs.
        """
        if begins:
            self.begin()
        # A long document is appended part by part, so that no more than a group is held.
        step = self._rows * self._length
        for start in range(0, len(tokens), step):
            part = slice(start, start + step)
            self._append(tokens[part].astype(self._dtype), token_bytes[part])
            if self._pending > step:
                yield from self._full_groups()
        if ends:
            self._append(self._end_of_text)
        # A full group needs one token more than it predicts.
        if self._pending > step:
            yield from self._full_groups()

    def begin(self) -> None:
        """Append what stands before a document."""
        if len(self._prefix):
            self._append(self._prefix)
        # The stream of a shard starts with an end-of-text token, before the first document.
        elif self.position == 0:
            self._append(self._end_of_text)

    def finish(self) -> Iterator[RowGroup]:
        """Yield the last group, of whose rows only the last may be short (≥ 2 tokens)."""
        if self._pending > 1:
            tokens, token_bytes = self._joined()
            yield self._group(tokens, token_bytes)
        self._tokens, self._bytes, self._pending = [], [], 0

    def _append(
        self, tokens: NDArray[np.unsignedinteger], token_bytes: NDArray[np.integer] | None = None
    ) -> None:
        """Append tokens; without `token_bytes`, no text stands behind them."""
        self._tokens.append(tokens)
        self._bytes.append(np.zeros(len(tokens), np.uint8) if token_bytes is None else token_bytes)
        self._pending += len(tokens)
        self.position += len(tokens)

    def _joined(self) -> tuple[NDArray[np.unsignedinteger], NDArray[np.integer]]:
        return np.concatenate(self._tokens), np.concatenate(self._bytes)

    def _full_groups(self) -> Iterator[RowGroup]:
        tokens, token_bytes = self._joined()
        step = self._rows * self._length
        start = 0
        while len(tokens) - start > step:
            # The last token of a group is also the first of the next one.
            stop = start + step + 1
            yield self._group(tokens[start:stop], token_bytes[start:stop])
            start += step
        self._tokens, self._bytes = [tokens[start:]], [token_bytes[start:]]
        self._pending = len(tokens) - start

    def _group(
        self, tokens: NDArray[np.unsignedinteger], token_bytes: NDArray[np.integer]
    ) -> RowGroup:
        predicted = len(tokens) - 1
        starts = np.arange(0, predicted, self._length)
        length = np.minimum(self._length, predicted - starts) + 1
        # Flat indices of every row's tokens: rows overlap by one token.
        index = np.repeat(starts - np.cumsum(length) + length, length) + np.arange(length.sum())
        row_bytes = np.add.reduceat(token_bytes[1:], starts, dtype=np.int64)
        return RowGroup(tokens[index], length.astype(np.int32), row_bytes.astype(np.int32))
