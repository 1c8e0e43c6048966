"""Pairs become row groups: the better answer with its prompt, then the worse with its own.

Legend: n tokens of a side. A row holds two sides of at most T + 1 tokens each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymill.data.messages.encode import EncodedChat
from raymill.data.store.pack import RowGroup


@dataclass(frozen=True)
class Side:
    """A prompt and one answer: ids [n], which are learned [n] and how many, the UTF-8 bytes of text behind
    those, and a digest of the ids."""

    ids: NDArray[np.uint32]
    learned: NDArray[np.bool_]
    learned_tokens: int
    learned_bytes: int
    digest: bytes

    @classmethod
    def of(cls, chat: EncodedChat) -> Side:
        """What an encoded conversation is as a side."""
        learned = int(chat.learned.sum())
        content = int(chat.token_bytes[chat.learned].sum())
        digest = hashlib.blake2b(chat.ids.tobytes(), digest_size=16).digest()
        return cls(chat.ids, chat.learned, learned, content, digest)

    @property
    def size(self) -> tuple[int, int]:
        """(tokens, learned tokens)."""
        return len(self.ids), self.learned_tokens


@dataclass(frozen=True)
class SidePair:
    """A row to be: `record` is its number, `weight` that of learning each of its answers' tokens."""

    chosen: Side
    rejected: Side
    record: int
    weight: float
    margin: float


def row_groups(pairs: Sequence[SidePair], *, group_rows: int, dtype: str) -> Iterator[RowGroup]:
    """`pairs` in their order, so many a group."""
    for first in range(0, len(pairs), group_rows):
        yield _row_group(pairs[first : first + group_rows], np.dtype(dtype))


def _row_group(pairs: Sequence[SidePair], dtype: np.dtype[np.unsignedinteger]) -> RowGroup:
    sides = [(pair, side) for pair in pairs for side in (pair.chosen, pair.rejected)]
    sizes = [len(side.ids) for _, side in sides]
    weight = [side.learned * np.float32(pair.weight) for pair, side in sides]
    text_bytes = [pair.chosen.learned_bytes + pair.rejected.learned_bytes for pair in pairs]
    segment = np.tile(np.array([0, 1], dtype=np.uint16), len(pairs))
    return RowGroup(
        tokens=np.concatenate([side.ids for _, side in sides]).astype(dtype),
        length=np.array(sizes, dtype=np.int32).reshape(-1, 2).sum(axis=1, dtype=np.int32),
        bytes=np.array(text_bytes, dtype=np.int32),
        by_token={"weight": np.concatenate(weight), "segment": np.repeat(segment, sizes)},
        by_row={
            "record": np.array([pair.record for pair in pairs], dtype=np.int64),
            "margin": np.array([pair.margin for pair in pairs], dtype=np.float32),
        },
    )
