"""Shares of the ranks in a step: equally many prompts, about equally many tokens, and only its own answers."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.ranks import run_ranks
from raymill.rl.shares import StepPrompts, answers_of, share_groups
from servers import free_port

WORLD = 3


def prompts(numbers: list[int]) -> StepPrompts:
    """Return prompts of as many tokens as their number says."""
    length = np.array(numbers)
    tokens = np.where(np.arange(length.max()) < length[:, None], length[:, None], 0)
    return StepPrompts(length, 100 + length, length, tokens)


@pytest.mark.parametrize(("world", "minibatches"), [(1, 1), (1, 3), (2, 3), (4, 3), (12, 1)])
def test_every_rank_has_equally_many_prompts_of_each_minibatch(
    world: int, minibatches: int
) -> None:
    tokens = np.random.default_rng(1).integers(1, 1000, 24)
    shares = share_groups(tokens, minibatches, world)
    size, count = 24 // minibatches, 24 // minibatches // world
    for minibatch in range(minibatches):
        parts = [share[minibatch * count : (minibatch + 1) * count] for share in shares]
        together = np.sort(np.concatenate(parts))
        assert together.tolist() == list(range(minibatch * size, (minibatch + 1) * size))
        assert all(np.array_equal(part, np.sort(part)) for part in parts)
    if world == 1:
        assert shares[0].tolist() == list(range(24))


def test_tokens_are_balanced() -> None:
    """Neighboring prompts, as they were shared out before, differ far more."""
    tokens = (np.random.default_rng(2).pareto(1.5, 512) * 300 + 50).astype(np.int64).clip(max=4096)
    sums = [int(tokens[share].sum()) for share in share_groups(tokens, 1, 16)]
    neighbors = tokens.reshape(16, -1).sum(axis=1)
    assert max(sums) < 1.05 * np.mean(sums) < max(neighbors)
    assert max(neighbors) > 1.2 * np.mean(sums)


def test_answers_to_a_prompt_are_adjacent() -> None:
    assert answers_of(np.array([2, 0]), 3).tolist() == [6, 7, 8, 0, 1, 2]


def work(rank: int, port: int, folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from raymill.engine.group import WorkerGroup
    from raymill.rl.collector import RolloutCollector
    from raymill.rl.rollout.engine import Sampling
    from raymill.rl.rollout.record import RolloutRecord
    from raymill.rl.rollout_backend import ScoredRollouts

    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
    group = WorkerGroup(torch.device("cpu"))
    nothing: Any = None
    sampling = Sampling(8, 1.0, 1.0, (0,))
    collector = RolloutCollector(nothing, group, sampling, 4, 1, None)
    found: dict[str, Any] = {}
    gathered = collector.gather_prompts(prompts([[5, 1], [2, 9], [4, 3]][rank]))
    assert (gathered is None) == (rank > 0)
    scored = indices = None
    if gathered is not None:
        found["prompts"] = gathered.by_sample()
        found["records"] = gathered.record.tolist()
        ids = tuple(np.full(n, n, np.int32) for n in gathered.length)
        numbers = gathered.sample_id
        rollout = RolloutRecord(
            1, sampling, numbers, np.zeros(6, np.int32), numbers, numbers, numbers > 3, ids, ids,
            tuple(np.full(n, -n, np.float32) for n in gathered.length),
        )  # fmt: skip
        scored = ScoredRollouts(rollout, numbers / 2, {}, {}, {})
        indices = [np.array([5]), np.array([0, 2, 1]), np.array([], dtype=np.int64)]
    share = collector.share(scored, indices)
    found["share"] = [share.index.tolist(), share.sample_id.tolist(), share.rewards.tolist()]
    batch = share.to_batch() if len(share.index) else None
    found["lengths"] = [] if batch is None else batch.length.tolist()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # Gloo's threads may still be ending


def test_prompts_go_to_rank_zero_and_answers_to_their_rank(tmp_path: Path) -> None:
    run_ranks(work, (free_port(), tmp_path), WORLD)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD)]
    numbers = [1, 2, 3, 4, 5, 9]
    assert found[0]["prompts"] == {str(n): [n] * n for n in numbers}
    assert found[0]["records"] == [100 + n for n in numbers]
    assert found[0]["share"] == [[5], [9], [4.5]]
    assert found[1]["share"] == [[0, 2, 1], [1, 3, 2], [0.5, 1.5, 1.0]]
    assert found[2]["share"] == [[], [], []]
    assert [of_rank["lengths"] for of_rank in found] == [[18], [2, 6, 4], []]
