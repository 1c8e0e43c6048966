"""Tasks on the cluster: few at once, repeated when a process is lost, and errors in one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymill.data.cluster_tasks import parallel
from raymill.errors import ClusterError, DataError


def dies(item: int, shared: tuple[str, int]) -> int:
    """End the process at item 3, the first so many times."""
    folder, times = shared
    tries = len(list(Path(folder).iterdir()))
    if item == 3 and tries < times:
        (Path(folder) / str(tries)).touch()
        os._exit(1)
    if item == 8:
        raise DataError("item 8 is damaged")
    return item * item


@pytest.mark.usefixtures("ray_session")
def test_a_lost_process_costs_nothing_but_its_item(tmp_path: Path) -> None:
    shared = (str(tmp_path), 1)
    assert sorted(parallel(dies, range(8), shared=shared, tasks=2)) == [n * n for n in range(8)]
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_an_item_that_ends_every_process_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="each time it worked on 3 "):
        list(parallel(dies, range(8), shared=(str(tmp_path), 99), tasks=2))


@pytest.mark.usefixtures("ray_session")
def test_items_are_taken_as_tasks_end(tmp_path: Path) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(8):
            taken.append(number)
            yield number

    results = parallel(dies, items(), shared=(str(tmp_path), 0), tasks=2)
    next(results)
    assert len(taken) <= 3
    assert len([*results]) == 7
    with pytest.raises(DataError, match="item 8 is damaged"):
        list(parallel(dies, [8, *range(4)], shared=(str(tmp_path), 0), tasks=2))
