"""Order within a source: position among its samples → epoch, shard, row group, row.

In each epoch, another Feistel permutation lines up the source's row groups, and the line is cut into
`width` columns of equal length. Positions run across the columns: column j gives its rows one after
the other, one in each turn. So `width` neighbors in the order come from as many places, a column
stays in a row group until it has given all of its rows (in the group's own permutation), and each
epoch has each row exactly once. Columns begin inside of row groups, so they don't all move on to
their next group at the same time. All is arithmetic: no table grows with the rows.

Where the width changes inside an epoch, what is left of the columns is put end to end, and this
line is cut again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raymill.data.store.blocks import Blocks, SourceShape
from raymill.data.store.hashing import Ints, feistel_each, mix


@dataclass(frozen=True)
class Cut:
    """Line of `rows` rows cut into columns, from position `first` of the epoch on.

    The lengths of the columns differ by one at most, the longer ones come first.
    """

    first: int
    rows: int
    width: int

    @property
    def length(self) -> int:
        return self.rows // self.width

    @property
    def longer(self) -> int:
        return self.rows % self.width

    def across(self, turn: Ints) -> Ints:
        """Return where in the line the rows stand that are taken as number `turn`."""
        deep, column = np.divmod(turn, self.width)
        return np.asarray(self._start(column) + deep)

    def beyond(self, taken: int, rest: Ints) -> Ints:
        """Return where in the line the rows stand that are number `rest` of those left over.

        `taken` rows were taken across; what is left of the columns is put end to end.
        """
        deep, deeper = divmod(taken, self.width)
        low, high = sorted((self.longer, deeper))
        # What is left of a column: the same before `low` and after `high`.
        outer = self.length - deep
        inner = outer + (1 if deeper < self.longer else -1)
        first_end = low * outer
        second_end = first_end + (high - low) * inner
        column = np.where(
            rest < first_end,
            rest // max(outer, 1),
            np.where(
                rest < second_end,
                low + (rest - first_end) // max(inner, 1),
                high + (rest - second_end) // max(outer, 1),
            ),
        )
        before = column * outer + np.minimum(column, self.longer) - np.minimum(column, deeper)
        return np.asarray(self._start(column) + deep + (column < deeper) + rest - before)

    def _start(self, column: Ints) -> Ints:
        return column * self.length + np.minimum(column, self.longer)


class ColumnOrder:
    """Order of one source. `widths` are (position, number of columns from there on)."""

    def __init__(
        self, source: SourceShape, key: np.uint64, widths: Sequence[tuple[int, int]]
    ) -> None:
        self._blocks = Blocks(source)
        self._key = key
        self._widths = list(widths)

    def locate(self, position: Ints) -> tuple[Ints, Ints, Ints, Ints]:
        """Return (epoch, shard, row group, row) of the source's samples `position`."""
        epoch, turn = np.divmod(position, self._blocks.rows)
        flat = np.empty_like(turn)
        for number in np.unique(epoch).tolist():
            chosen = epoch == number
            flat[chosen] = self._rows(turn[chosen], number)
        return epoch, *self._blocks.to_shard(flat)

    def _rows(self, turn: Ints, epoch: int) -> Ints:
        """Return the rows, counted block by block, of positions within an epoch."""
        blocks = self._blocks
        key = mix(self._key + np.uint64(epoch))
        block, row = blocks.permuted(self._line(turn, epoch), key)
        sizes = np.where(block == blocks.count - 1, blocks.size - blocks.short, blocks.size)
        keys = mix(key ^ mix(block.astype(np.uint64) + np.uint64(1)))
        return np.asarray(block * blocks.size + feistel_each(row, sizes, blocks.size, keys))

    def _line(self, turn: Ints, epoch: int) -> Ints:
        cuts = self._cuts(epoch)
        line = np.empty_like(turn)
        number = np.searchsorted([cut.first for cut in cuts], turn, side="right") - 1
        for last in np.unique(number).tolist():
            chosen = number == last
            rows = cuts[last].across(turn[chosen] - cuts[last].first)
            # Back through the lines that this one was made of.
            for earlier in range(last - 1, -1, -1):
                taken = cuts[earlier + 1].first - cuts[earlier].first
                rows = cuts[earlier].beyond(taken, rows)
            line[chosen] = rows
        return line

    def _cuts(self, epoch: int) -> list[Cut]:
        rows = self._blocks.rows
        starts = [position for position, _ in self._widths]
        first, end = bisect_right(starts, epoch * rows) - 1, (epoch + 1) * rows
        cuts = []
        for position, width in self._widths[first : bisect_right(starts, end - 1)]:
            turn = max(0, position - epoch * rows)
            cuts.append(Cut(turn, rows - turn, min(width, rows - turn)))
        return cuts
