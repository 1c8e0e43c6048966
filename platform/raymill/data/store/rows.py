"""Rows of tokens in host memory: read from a shard, carried by the stream, used by an objective.

Legend: B rows, T predictions per row (a row holds T + 1 tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]

# Columns that each kind of data stores per token, besides its id, and per row, besides its bytes.
# Text predicts every token; conversations are packed whole and learned in part. A row of preferences
# is two conversations, the better one first; a row of prompts is one prompt.
TOKEN_COLUMNS: dict[str, dict[str, str]] = {
    "text": {},
    "chat": {"weight": "float32", "segment": "uint16"},
    "preference": {"weight": "float32", "segment": "uint16"},
    "prompts": {},
}
ROW_COLUMNS: dict[str, dict[str, str]] = {
    "text": {},
    "chat": {},
    "preference": {"record": "int64", "margin": "float32"},
    "prompts": {"record": "int64"},
}
# A record's number takes the bits below this one; the number of its source takes those above.
SOURCE_SHIFT = 48


@dataclass(frozen=True)
class Rows:
    """Rows in storage dtype; values past a row's length are 0. `record` numbers a row within its
    folder."""

    tokens: AnyArray  # [B, T + 1]
    length: npt.NDArray[np.int32]  # [B] number of valid tokens
    bytes: npt.NDArray[np.int32] | None = None  # [B] UTF-8 bytes of the predicted text
    weight: npt.NDArray[np.float32] | None = None  # [B, T + 1] loss weight of a token; None: 1
    segment: npt.NDArray[np.uint16] | None = None  # [B, T + 1] number of the conversation
    record: npt.NDArray[np.int64] | None = None  # [B]
    margin: npt.NDArray[np.float32] | None = None  # [B] lead of the better answer; 0: unknown

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    @property
    def memory(self) -> int:
        """Bytes of all columns."""
        return sum(column.nbytes for column in self.columns().values())

    @classmethod
    def from_columns(cls, columns: Mapping[str, AnyArray]) -> Rows:
        """Build rows from arrays by name; other names are ignored."""
        return cls(**{name: columns[name] for name in _NAMES if name in columns})

    @classmethod
    def empty(cls, width: int, dtype: str, kind: str) -> Rows:
        """Return no rows of `width` tokens."""
        none: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)
        columns: dict[str, AnyArray] = {}
        columns |= {
            name: np.empty((0, width), dtype=column_dtype)
            for name, column_dtype in TOKEN_COLUMNS[kind].items()
        }
        columns |= {
            name: np.empty(0, dtype=column_dtype)
            for name, column_dtype in ROW_COLUMNS[kind].items()
        }
        return cls(np.empty((0, width), dtype=dtype), none, none, **columns)

    @classmethod
    def concatenated(cls, parts: Sequence[Rows]) -> Rows:
        """Concatenate the rows of several parts."""
        columns = [part.columns() for part in parts]
        return cls(**{name: np.concatenate([c[name] for c in columns]) for name in columns[0]})

    def columns(self) -> dict[str, AnyArray]:
        """Return every column that is present, by name."""
        return {name: value for name in _NAMES if (value := getattr(self, name)) is not None}

    @property
    def first_length(self) -> npt.NDArray[np.int64]:
        """[B] Tokens of each row's first segment; of the whole row, where rows have no segments."""
        if self.segment is None:
            return self.length.astype(np.int64)
        # Values past a row's length are 0, which is also the number of the first segment.
        counts = np.arange(self.tokens.shape[1]) < self.length[:, None]
        first: npt.NDArray[np.int64] = ((self.segment == 0) & counts).sum(axis=1)
        return first

    def unweighted(self) -> Rows:
        """Return the same rows with weight 1 for every token that is learned."""
        if self.weight is None:
            return self
        return replace(self, weight=(self.weight > 0).astype(np.float32))

    def with_source(self, source: int) -> Rows:
        """Return the same rows, with record numbers that are distinct among sources."""
        # The first source keeps its numbers, so that data with one source is unchanged.
        if self.record is None or not source:
            return self
        return replace(self, record=self.record + (source << SOURCE_SHIFT))

    def take(self, index: slice | npt.NDArray[np.bool_] | npt.NDArray[np.integer]) -> Rows:
        """Select rows by a slice, a mask or an array of numbers."""
        return Rows(**{name: value[index] for name, value in self.columns().items()})

    def part(self, start: int, stop: int) -> Rows:
        """Select rows [start, stop)."""
        return self.take(slice(start, stop))


_NAMES = tuple(field.name for field in fields(Rows))
