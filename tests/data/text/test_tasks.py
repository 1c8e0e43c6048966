"""Results that are combined in a tree on the cluster: all of them once, or the first error."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from raymill.data.cluster_tasks import FAN_IN, reduced
from raymill.errors import DataError


def squares(item: int, shared: int) -> list[int]:
    if item == shared:
        raise DataError(f"item {item} is damaged")
    return [item * item]


def joined(parts: Sequence[list[int]]) -> list[int]:
    assert len(parts) <= FAN_IN, "no task receives more"
    return sorted(number for part in parts for number in part)


@pytest.mark.parametrize(("count", "tasks"), [(1, None), (FAN_IN + 4, None), (40, 3)])
def test_all_results_are_combined(ray_session: None, count: int, tasks: int | None) -> None:
    items = list(range(count))
    found = reduced(squares, joined, items, shared=-1, tasks=tasks)
    assert found == [item * item for item in items]


def test_an_error_ends_the_reduction(ray_session: None) -> None:
    with pytest.raises(DataError, match="item 7 is damaged"):
        reduced(squares, joined, range(9), shared=7, tasks=2)
