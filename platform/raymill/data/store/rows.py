"""Rows of tokens on the host: what a shard holds, the stream carries and an objective learns from.

Legend: B rows, T predictions a row (a row holds T + 1 tokens).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

# What each kind of data keeps a token, besides its id, and a row, besides its bytes. Text predicts every
# token; conversations are packed whole into rows and learned from in parts. A row of preferences is two
# conversations, the better one first; a row of prompts is one prompt.
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
SOURCE_SHIFT = 48  # bits of a record's number below that of its source, where there are several


@dataclass(frozen=True)
class Rows:
    """Rows in storage dtype; whatever lies past a row's length is 0."""

    tokens: npt.NDArray[Any]  # [B, T + 1]
    length: npt.NDArray[np.int32]  # [B] tokens that count
    bytes: npt.NDArray[np.int32] | None = None  # [B] UTF-8 bytes of the text that is predicted
    weight: npt.NDArray[np.float32] | None = None  # [B, T + 1] of predicting a token; None: 1
    segment: npt.NDArray[np.uint16] | None = None  # [B, T + 1] which of the row's conversations
    record: npt.NDArray[np.int64] | None = None  # [B] a number of the row's own in its folder
    margin: npt.NDArray[np.float32] | None = None  # [B] by how much the first is better; 0: unknown

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    @classmethod
    def of(cls, columns: Mapping[str, npt.NDArray[Any]]) -> Rows:
        """From arrays by name; others than these columns are passed over."""
        return cls(**{name: columns[name] for name in _NAMES if name in columns})

    @classmethod
    def empty(cls, width: int, dtype: str, kind: str) -> Rows:
        """No rows of `width` tokens."""
        none: npt.NDArray[np.int32] = np.empty(0, dtype=np.int32)
        columns: dict[str, npt.NDArray[Any]] = {}
        columns |= {
            name: np.empty((0, width), dtype=of) for name, of in TOKEN_COLUMNS[kind].items()
        }
        columns |= {name: np.empty(0, dtype=of) for name, of in ROW_COLUMNS[kind].items()}
        return cls(np.empty((0, width), dtype=dtype), none, none, **columns)

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """Rows of several parts, one after the other."""
        columns = [part.columns() for part in parts]
        return cls(**{name: np.concatenate([c[name] for c in columns]) for name in columns[0]})

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Name → array of every column there is."""
        return {name: value for name in _NAMES if (value := getattr(self, name)) is not None}

    @property
    def first_length(self) -> npt.NDArray[np.int64]:
        """[B] Tokens of each row's first segment; of the whole row, where rows have one."""
        if self.segment is None:
            return self.length.astype(np.int64)
        counts = np.arange(self.tokens.shape[1]) < self.length[:, None]
        first: npt.NDArray[np.int64] = ((self.segment == 0) & counts).sum(axis=1)
        return first

    def unweighted(self) -> Rows:
        """The same rows, every token that is learned from counting 1."""
        if self.weight is None:
            return self
        return replace(self, weight=(self.weight > 0).astype(np.float32))

    def of_source(self, source: int) -> Rows:
        """The same rows, their records told apart from those of other sources."""
        if self.record is None or not source:
            return self
        return replace(self, record=self.record + (source << SOURCE_SHIFT))

    def take(self, index: Any) -> Rows:
        """The rows that a slice, mask or array of numbers chooses."""
        return Rows(**{name: value[index] for name, value in self.columns().items()})

    def part(self, start: int, stop: int) -> Rows:
        """Rows [start, stop)."""
        return self.take(slice(start, stop))


_NAMES = tuple(field.name for field in fields(Rows))
