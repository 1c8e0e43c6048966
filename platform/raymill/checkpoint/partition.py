"""Partition of a flattened parameter over the ranks: one arithmetic for all ZeRO stages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Partition:
    """Partition of a flattened parameter over the ranks.

    The parameter starts `first` elements into a sequence that is cut into parts of `size`; rank r
    has part r. If it is `replicated`, every rank has all elements.
    """

    numel: int
    first: int
    size: int
    replicated: bool = False

    def range_of(self, rank: int) -> tuple[int, int]:
        """Return (start, numel) of a rank's elements."""
        if self.replicated:
            return 0, self.numel
        start = min(max(0, rank * self.size - self.first), self.numel)
        stop = min(max(0, (rank + 1) * self.size - self.first), self.numel)
        return start, stop - start

    def ranks(self, world_size: int) -> range:
        """Return the ranks that have any elements."""
        if self.replicated:
            return range(world_size)
        return self.ranks_of(0, self.numel)

    def ranks_of(self, start: int, stop: int) -> range:
        """Return the ranks that have the elements [start, stop), of which there are some."""
        return range((self.first + start) // self.size, (self.first + stop - 1) // self.size + 1)

    def is_whole_on(self, rank: int) -> bool:
        """Return whether a rank has all elements."""
        return self.range_of(rank)[1] == self.numel
