"""What stops a run, on all ranks alike and before anything is updated."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from raymill.data.rows import Rows
from raymill.data.stream import StepBatch
from raymill.engine.agreement import on_all_ranks, on_rank_zero
from raymill.engine.learner import global_loss
from raymill.engine.loop import Loop, _ranges, step_seed
from raymill.errors import DataError, NonFiniteError

T = TypeVar("T")


class TwoRanks:
    """This rank's view of a group of two; `other` is what the other rank contributes."""

    world_size = 2

    def __init__(self, rank: int, other: list[Any]) -> None:
        self.rank = rank
        self.other = other

    def gather(self, value: T) -> list[T]:
        pair = [value, self.other.pop(0)]
        return pair if self.rank == 0 else pair[::-1]

    def broadcast(self, value: T) -> T:
        return value if self.rank == 0 else self.other.pop(0)

    def sum(self, *values: float) -> list[float]:
        return [a + b for a, b in zip(values, self.other.pop(0), strict=True)]


def loop_with(group: TwoRanks) -> Loop:
    loop: Loop = object.__new__(Loop)
    loop.group = group  # type: ignore[assignment]
    loop.step = 6
    return loop


def batch(*ids: int) -> StepBatch:
    empty = np.zeros((len(ids), 3), dtype=np.uint16)
    length = np.full(len(ids), 3, dtype=np.int32)
    return StepBatch(np.array(ids), np.zeros(len(ids), dtype=np.int64), Rows(empty, length))


def test_a_nan_on_one_rank_is_the_same_error_on_both() -> None:
    guilty = loop_with(TwoRanks(1, [[5.0, False], []]))
    innocent = loop_with(TwoRanks(0, [[0.0, True], [12, 13, 20]]))
    messages = []
    for loop, nats, ids in ((guilty, float("nan"), (12, 13, 20)), (innocent, 5.0, (1, 2))):
        with pytest.raises(NonFiniteError) as caught:
            global_loss(
                nats, 10.0, loop.group, partial(loop._non_finite, np.array(ids), "the loss")
            )
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "the loss of step 7 is not finite (rank 1; global samples 12-13, 20)" in messages[0]
    assert "that update wasn't made" in messages[0]


def test_a_finite_loss_is_the_mean_over_all_ranks() -> None:
    group: Any = TwoRanks(0, [[6.0, 0.0]])
    assert global_loss(4.0, 5.0, group, lambda mine: AssertionError()) == 2.0


def test_an_error_on_one_rank_is_raised_on_all() -> None:
    def fail() -> None:
        raise DataError("shard 3 is missing")

    with pytest.raises(DataError, match="shard 3"):
        on_all_ranks(TwoRanks(0, [None]), fail)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shard 3"):
        on_all_ranks(TwoRanks(1, [DataError("shard 3 is missing")]), lambda: 1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shard 3"):
        on_rank_zero(TwoRanks(1, [(None, DataError("shard 3 is missing"))]), lambda: 1)  # type: ignore[arg-type]
    assert on_rank_zero(TwoRanks(1, [(7, None)]), lambda: 1) == 7  # type: ignore[arg-type]


def test_an_infinite_gradient_is_not_applied(tmp_path: Path) -> None:
    """Under every stage, through the real engine: weights before and after are the same."""
    import torch.multiprocessing as mp

    from engine.probe import free_port

    mp.spawn(_infinite_gradient, (free_port(), tmp_path), nprocs=1)
    assert sorted(path.name for path in tmp_path.glob("ok-*")) == [
        f"ok-{precision}-{stage}" for precision in ("bf16", "fp32") for stage in range(4)
    ]


def _infinite_gradient(rank: int, port: int, folder: Path) -> None:
    import os

    import torch

    from engine.probe import SEED, VOCAB, Case, batches, job_of

    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    from raymill.engine.device import join_deepspeed
    from raymill.engine.group import WorkerGroup
    from raymill.engine.trainer import Trainer
    from raymill.engine.worker_log import send_output_to
    from raymill.model.build import build_model
    from raymill.objective.language_modelling import LanguageModelling

    send_output_to(folder / "log")
    torch.distributed.init_process_group("gloo")
    join_deepspeed(gpu=False)
    group = WorkerGroup(torch.device("cpu"))
    rows = Rows(batches(1)[0], np.full(8, 33, dtype=np.int32))
    for precision in ("fp32", "bf16"):
        for stage in range(4):
            job = job_of(Case(stage, micro_batch=8, precision=precision))
            trainer = Trainer(job, build_model(job.arch, VOCAB, 0, SEED), group)

            def state(trainer: Trainer = trainer) -> list[np.ndarray]:
                return [arrays["fp32"].copy() for _, _, arrays in trainer.fragments()]

            before = state()
            trainer.begin_micro_batch(last=True)
            loss = LanguageModelling(0).losses(trainer.engine, rows, group.device).sum()
            trainer.backward(loss * float("inf"), 256.0)
            assert not np.isfinite(trainer.update(0.1))
            assert all(np.array_equal(a, b) for a, b in zip(before, state(), strict=True))
            (folder / f"ok-{precision}-{stage}").touch()


def test_names_and_seeds() -> None:
    assert _ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    seeds = {step_seed(seed, step, rank) for seed in (1, 2) for step in (1, 2) for rank in (0, 1)}
    assert len(seeds) == 8
    assert max(seeds) < 2**63
