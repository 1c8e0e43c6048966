"""Lean executions of Ray Data: no call to an actor of the whole cluster, and no busy waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator

from raymill.cluster.lean_data import lean, lean_context
from raymill.data.store.stream import UNITS_IN_MEMORY


def repeated(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield 16 blocks of one row of 1 MiB."""
    for _ in range(16):
        yield {"id": np.zeros((1, 2**20), dtype=np.uint8)}


@pytest.mark.parametrize("is_lean", [True, False])
def test_the_cluster_is_asked_for_nothing(
    ray_session: None, monkeypatch: pytest.MonkeyPatch, is_lean: bool
) -> None:
    called = []
    for module, name in (
        (stats, "get_or_create_stats_actor"),
        (default_autoscaling_coordinator, "get_or_create_autoscaling_coordinator"),
    ):
        original = getattr(module, name)

        def counting(original: Any = original, name: str = name) -> Any:
            called.append(name)
            return original()

        monkeypatch.setattr(module, name, counting)
    with lean_context() as context:
        context.target_max_block_size = 1
        dataset = ray.data.range(1, override_num_blocks=1).map_batches(
            repeated, batch_size=None, num_cpus=0.1
        )
    batches = (lean(dataset) if is_lean else dataset).iterator().iter_batches(batch_size=None)
    assert sum(len(batch["id"]) for batch in batches) == 16
    assert (called == []) == is_lean


def test_an_execution_waits_for_its_consumer(ray_session: None, tmp_path: Path) -> None:
    yielded = tmp_path / "yielded"

    def counted(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for block in repeated(batch):
            with yielded.open("a") as file:
                file.write(".")
            yield block

    with lean_context() as context:
        context.target_max_block_size = 1
        dataset = ray.data.range(1, override_num_blocks=1).map_batches(
            counted, batch_size=None, num_cpus=0.1
        )
    batches = iter(lean(dataset).iterator().iter_batches(batch_size=None, prefetch_batches=2))
    for taken in range(1, 5):
        next(batches)
        time.sleep(0.5)
        assert yielded.stat().st_size <= taken + UNITS_IN_MEMORY - 1
    used, started = time.process_time(), time.monotonic()
    time.sleep(1.5)
    # Other threads of this process work a little, too.
    assert time.process_time() - used < 0.3 * (time.monotonic() - started)
    assert len(list(batches)) == 12
