"""Collectives of a step: sums of every name, slow ranks, and the first rank that applies."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.ranks import run_ranks
from raymill.engine.stragglers import STEPS, messages
from servers import free_port

WORLD = 3
FAST, SLOW = {"data": 0.1, "forward": 1.0}, {"data": 0.1, "forward": 2.0}


def work(rank: int, port: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from raymill.engine.group import WorkerGroup
    from raymill.engine.step_sums import StepSums
    from raymill.engine.stragglers import Stragglers

    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    group = WorkerGroup(torch.device("cpu"))
    step_sums, stragglers = StepSums(group), Stragglers(group)
    found: dict[str, Any] = {}
    # Ranks may list their names in any order.
    numbers = {"b": [rank + 0.5], "a": [1.0, 2.0 * rank]}
    found["sums"] = step_sums.reduce(dict(sorted(numbers.items(), reverse=rank == 1)))
    found["first"] = [group.first(rank >= lowest) for lowest in (0, 2, 3)]
    found["stack"] = group.stack([rank, rank**2]).tolist()
    found["broadcast"] = group.broadcast(f"of {rank}", 1)
    told = [stragglers.add(step, SLOW if rank == 2 else FAST) for step in range(1, 2 * STEPS + 1)]
    found["told"] = {step: texts for step, texts in enumerate(told, 1) if texts}
    try:
        step_sums.reduce({"c" if rank else "d": [1.0]})
    except RuntimeError as error:
        found["other names"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # Gloo's threads may still be ending


def test_what_three_ranks_tell_each_other(tmp_path: Path) -> None:
    run_ranks(work, (free_port(), tmp_path), WORLD)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD)]
    for rank, of_rank in enumerate(found):
        assert of_rank["sums"] == {"a": [3.0, 6.0], "b": [4.5]}
        assert of_rank["first"] == [0, 2, None]
        assert of_rank["stack"] == [[0, 0], [1, 1], [2, 4]]
        assert of_rank["broadcast"] == "of 1"
        assert list(of_rank["told"]) == [str(STEPS), str(2 * STEPS)]
        name = "c" if rank else "d"
        assert of_rank["other names"] == f"rank {rank} sums up other metrics than others: {name}"
    assert found[0]["told"] == found[1]["told"] == found[2]["told"]
    assert found[0]["told"][str(STEPS)] == [
        f"rank 2 was 1.9 times as slow as the median rank in steps 1 to {STEPS}: data 5.00 s, "
        "forward 100.00 s, median in all 55.00 s"
    ]


def test_ranks_of_one_speed_are_not_told_of() -> None:
    assert messages(np.full((3, 2), 55.0), 1, 50) == []


def test_checksums_of_parts_make_that_of_the_whole() -> None:
    from raymill.engine.loop import CHECKSUMS, samples_checksum

    ids = np.arange(10**9, 10**9 + 64, dtype=np.int64)
    order = np.random.default_rng(1).permutation(ids)
    parts = [samples_checksum(part) for part in np.split(order, 4)]
    assert sum(parts) % CHECKSUMS == samples_checksum(ids)
    other = order.copy()
    other[3] = ids[-1] + 1
    assert samples_checksum(other) != pytest.approx(samples_checksum(ids))
