"""Held-out rows of many ranks: every row on one rank, in order, from the row groups of its own share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.prepared_factory import write_prepared
from raymill.data.store import validation
from raymill.data.store.rows import Rows
from raymill.data.store.validation import ValidationSet


@pytest.mark.parametrize("rows", [None, 17, 3])
def test_ranks_read_neighboring_row_groups(
    tmp_path: Path, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = write_prepared(tmp_path, row_group_rows=2, validation_rows=(7, 9, 5))
    read = validation.read_row_group
    groups: list[tuple[Path, int]] = []

    def counted(path: Path, shard: object, group: int, *more: str) -> Rows:
        groups.append((path, group))
        return read(path, shard, group, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(validation, "read_row_group", counted)

    def tokens(world: int) -> list[np.ndarray]:
        sets = [
            ValidationSet(prepared.folder, rank=rank, world_size=world, batch_rows=2, rows=rows)
            for rank in range(world)
        ]
        return [Rows.concatenated(list(held_out)).tokens for held_out in sets]

    [whole] = tokens(1)
    total = len(groups)
    assert len(set(groups)) == total
    for world in (2, 4, 64):
        groups.clear()
        shares = tokens(world)
        assert np.array_equal(np.concatenate(shares), whole)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
        assert len(set(groups)) == total, "no other row group is read"
        assert len(groups) <= total + min(world, len(whole)), "and few more than once"
