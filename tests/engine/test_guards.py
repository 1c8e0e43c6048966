"""What stops a run, on all ranks alike and before anything is updated."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest

from checkpoint.test_commit import Alone
from raymill.checkpoint.background import BackgroundCommits
from raymill.config.schema import GuardConfig
from raymill.data.rows import Rows
from raymill.engine.agreement import on_all_ranks, on_rank_zero
from raymill.engine.guard import Guard, robust_z, windows_from
from raymill.engine.learner import Update, global_loss
from raymill.engine.loop import Loop, _ranges, step_seed
from raymill.engine.setup import Start
from raymill.errors import DataError, NonFiniteError, RewindError

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


def loop_with(group: TwoRanks, config: GuardConfig, run_dir: Path = Path("/nowhere")) -> Loop:
    loop: Loop = object.__new__(Loop)
    loop.group = group  # type: ignore[assignment]
    loop.step, loop.samples = 6, 48
    loop.journal = None
    loop.guard = Guard(config)
    loop.start = Start(None, False)
    loop._committed = 0
    loop._commits = BackgroundCommits(run_dir, Alone(), lambda path: None)
    job = SimpleNamespace(guard=config, train=SimpleNamespace(global_batch=8))
    loop.assignment = SimpleNamespace(job=job, run_dir=run_dir)  # type: ignore[assignment]
    return loop


def refused(why: str, mine: bool) -> Update:
    return Update(np.zeros(1), float("nan"), 8.0, float("nan"), {}, why, mine)


def test_a_nan_on_one_rank_is_the_same_error_on_both() -> None:
    why = "the loss is not finite"
    guilty = loop_with(TwoRanks(1, [([1, 2], False)]), GuardConfig())
    innocent = loop_with(TwoRanks(0, [([12, 13, 20], True)]), GuardConfig())
    messages = []
    for loop, mine, ids in ((guilty, True, (12, 13, 20)), (innocent, False, (1, 2))):
        with pytest.raises(NonFiniteError) as caught:
            loop._refuse(refused(why, mine), np.array(ids))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert f"{why} in step 7 (rank 1; global samples 12-13, 20)" in messages[0]
    assert "that update wasn't made" in messages[0]


def test_skips_are_remembered_and_bounded() -> None:
    loop = loop_with(TwoRanks(0, [([1], False)] * 3), GuardConfig("skip", most_in_a_row=2))
    for _ in range(2):
        loop._refuse(refused("the loss is not finite", True), np.array([0]))
    with pytest.raises(NonFiniteError, match="3 updates in a row weren't made"):
        loop._refuse(refused("the loss is not finite", True), np.array([0]))
    assert loop.guard.skipped == [(48, 55)] * 3


def test_a_rewind_goes_past_the_samples_since_the_last_checkpoint(tmp_path: Path) -> None:
    class Written:
        """A journal that isn't one."""

        def write(self, *_: Any, **__: Any) -> None: ...

    loop = loop_with(TwoRanks(0, [([1], False)] * 9), GuardConfig("rewind"), tmp_path)
    loop.journal = Written()  # type: ignore[assignment]
    loop._committed = 16
    with pytest.raises(RewindError, match="past the samples 16-55 since"):
        loop._refuse(refused("the loss is not finite", True), np.array([0]))
    assert windows_from(tmp_path, 16) == ((16, 55),)
    loop.start = SimpleNamespace(consumed=16, windows=((16, 55),))  # type: ignore[assignment]
    loop.samples = 72
    with pytest.raises(RewindError, match="past the samples 56-79 since"):
        loop._refuse(refused("the loss is not finite", True), np.array([0]))
    assert windows_from(tmp_path, 16) == ((16, 55), (56, 79))
    assert windows_from(tmp_path, 56) == ((56, 79),)
    assert windows_from(tmp_path, 8) == ()
    loop.start = SimpleNamespace(consumed=16, windows=((16, 55),) * 3)  # type: ignore[assignment]
    with pytest.raises(NonFiniteError, match="gone back to its last checkpoint 3 times"):
        loop._refuse(refused("the loss is not finite", True), np.array([0]))


def test_a_finite_loss_is_the_mean_over_all_ranks() -> None:
    group: Any = TwoRanks(0, [[6.0, 0.0], [6.0, 1.0], [0.0, 0.0]])
    assert global_loss(4.0, 5.0, group) == 2.0
    assert np.isnan(global_loss(4.0, 5.0, group))
    assert global_loss(float("nan"), 5.0, TwoRanks(0, [[6.0, -1.0]])) == 1.2  # type: ignore[arg-type]


def test_a_spike_is_told_from_noise() -> None:
    rng = np.random.default_rng(5)
    guard = Guard(GuardConfig(spike_z=8.0))
    assert guard.refusal(1e9) is None, "nothing to compare with yet"
    for loss in 3 + 0.1 * rng.standard_normal(100):
        assert guard.refusal(loss) is None
        guard.learned(loss)
    assert guard.refusal(2.0) is None, "a fall is none"
    assert guard.refusal(3.5) is None
    why = guard.refusal(6.0)
    assert why is not None
    assert "robust standard deviations above the median of 64 steps" in why
    assert guard.refusal(float("inf")) == "is not finite"
    again = Guard(guard.config)
    again.restore(json.loads(json.dumps(guard.state())))
    assert again.refusal(6.0) == why


def test_the_robust_z_of_a_normal_sample_is_its_z() -> None:
    values = np.random.default_rng(7).normal(5, 2, 20_001)
    assert robust_z(9.0, values.tolist()) == pytest.approx(2.0, abs=0.05)
    assert robust_z(1.0, [1.0] * 9) == 0
    assert robust_z(1.1, [1.0] * 9) == float("inf")


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
