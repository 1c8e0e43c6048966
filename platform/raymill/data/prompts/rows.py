"""Encoded prompts become row groups: a prompt a row, with the number under which the book lists it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raymill.data.store.pack import RowGroup


@dataclass(frozen=True)
class EncodedPrompt:
    """A row to be: ids [n] up to where the assistant begins, UTF-8 bytes of what its messages say, number."""

    ids: NDArray[np.uint32]
    bytes: int
    record: int


def row_groups(
    prompts: Sequence[EncodedPrompt], *, group_rows: int, dtype: str
) -> Iterator[RowGroup]:
    """`prompts` in their order, so many a group."""
    for first in range(0, len(prompts), group_rows):
        group = prompts[first : first + group_rows]
        yield RowGroup(
            tokens=np.concatenate([prompt.ids for prompt in group]).astype(np.dtype(dtype)),
            length=np.array([len(prompt.ids) for prompt in group], dtype=np.int32),
            bytes=np.array([prompt.bytes for prompt in group], dtype=np.int32),
            by_row={"record": np.array([prompt.record for prompt in group], dtype=np.int64)},
        )
