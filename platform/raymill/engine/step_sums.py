"""Sums over all ranks at the end of a step, in one reduction, whatever the step measures."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from raymill.engine.group import WorkerGroup


class StepSums:
    """Reduction of named numbers, of which every rank has the same names by construction.

    The names themselves aren't sent: ranks compare their checksum once, when a set of names first occurs.
    """

    def __init__(self, group: WorkerGroup) -> None:
        self._group = group
        self._agreed: set[tuple[tuple[str, int], ...]] = set()

    def reduce(self, numbers: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
        """Return the sums of each name's numbers over all ranks; collective."""
        shape = tuple(sorted((name, len(values)) for name, values in numbers.items()))
        if shape not in self._agreed:
            self._agree(shape)
        flat = iter(self._group.sum(*(value for name, _ in shape for value in numbers[name])))
        return {name: [next(flat) for _ in range(count)] for name, count in shape}

    def _agree(self, shape: tuple[tuple[str, int], ...]) -> None:
        checksum = float(zlib.crc32(repr(shape).encode()))
        [total] = self._group.sum(checksum)
        world = self._group.world_size
        # The sum is exact in float64; unequal checksums give it on all ranks only if they equal their mean.
        if total != world * checksum:
            names = ", ".join(name for name, _ in shape)
            raise RuntimeError(
                f"rank {self._group.rank} sums up other metrics than others: {names}"
            )
        self._agreed.add(shape)


def means(sums: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return each numerator over its denominator, of those that have any weight."""
    return {name: total / weight for name, (total, weight) in sums.items() if weight > 0}
