"""Sequences on disk, for plans of millions of inputs."""

from __future__ import annotations

import os
import pickle
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

Item = TypeVar("Item")


class Spool(Sequence[Item], Generic[Item]):
    """Items in a temporary file without a name, in the order in which they were appended.

    A process holds eight bytes of each. Pickling a spool pickles its items as a tuple.
    """

    def __init__(self) -> None:
        # The file is needed for as long as the sequence.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self._ends = array("Q", [0])

    def append(self, item: Item) -> None:
        """Write an item."""
        content = pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL)
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        start, end = self._ends[number], self._ends[number + 1]
        self._file.flush()
        item: Item = pickle.loads(os.pread(self._file.fileno(), end - start, start))
        return item

    def __iter__(self) -> Iterator[Item]:
        return (self[number] for number in range(len(self)))

    def __reduce__(self) -> tuple[Callable[[Sequence[Any]], tuple[Any, ...]], tuple[list[Item]]]:
        return tuple, ([*self],)
