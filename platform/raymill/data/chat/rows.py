"""Encoded conversations become row groups: ids, what each token weighs, and whose it is.

Legend: T sequence length; a row holds at most T + 1 tokens, of several conversations one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymill.data.messages.encode import EncodedChat
from raymill.data.store.pack import RowGroup


@dataclass(frozen=True)
class Weighed:
    """A conversation's tokens [n]: ids; weight of learning each, 0 for none; bytes learned."""

    ids: NDArray[np.uint32]
    weight: NDArray[np.float32]
    bytes: int

    @classmethod
    def of(cls, chat: EncodedChat, weight: float) -> Weighed:
        """With one weight for all that is learned."""
        learned = np.where(chat.learned, np.float32(weight), np.float32(0))
        return cls(chat.ids, learned, int(chat.token_bytes[chat.learned].sum()))


def row_groups(
    chats: Sequence[Weighed], rows: Sequence[Sequence[int]], *, group_rows: int, dtype: str
) -> Iterator[RowGroup]:
    """`rows` list the conversations of each row by number."""
    for first in range(0, len(rows), group_rows):
        yield _row_group(chats, rows[first : first + group_rows], np.dtype(dtype))


def _row_group(
    chats: Sequence[Weighed], rows: Sequence[Sequence[int]], dtype: np.dtype[np.unsignedinteger]
) -> RowGroup:
    members = [chats[number] for row in rows for number in row]
    segment = [np.uint16(place) for row in rows for place in range(len(row))]
    sizes = [len(chat.ids) for chat in members]
    return RowGroup(
        tokens=np.concatenate([chat.ids for chat in members]).astype(dtype),
        length=np.array([sum(len(chats[n].ids) for n in row) for row in rows], dtype=np.int32),
        bytes=np.array([sum(chats[n].bytes for n in row) for row in rows], dtype=np.int32),
        by_token={
            "weight": np.concatenate([chat.weight for chat in members]),
            "segment": np.repeat(np.array(segment, dtype=np.uint16), sizes),
        },
    )
