"""Errors and refusals that stop a run, on all ranks alike and before anything is updated."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest

from engine.ranks import run_ranks
from raymill.data.store.rows import Rows
from raymill.engine.divergence import Divergence, format_ranges
from raymill.engine.group import on_all_ranks, on_rank_zero
from raymill.engine.guard import Guard, robust_z, windows_from
from raymill.engine.learner import Update, global_loss
from raymill.engine.loop import step_seed
from raymill.engine.start import StartPoint
from raymill.errors import DataError, NonFiniteError, RewindError
from raymill.schema.sections import GuardConfig
from sections import plain

T = TypeVar("T")


class TwoRanks:
    """One rank's view of a group of two; `other` is the other rank's contributions."""

    world_size = 2

    def __init__(self, rank: int, other: list[Any]) -> None:
        self.rank = rank
        self.other = other

    def gather(self, value: T) -> list[T]:
        pair = [value, self.other.pop(0)]
        return pair if self.rank == 0 else pair[::-1]

    def broadcast(self, value: T, source: int = 0) -> T:
        return value if self.rank == source else self.other.pop(0)

    def first(self, applies: bool) -> int | None:
        by_rank = [applies, self.other.pop(0)][:: 1 if self.rank == 0 else -1]
        return by_rank.index(True) if any(by_rank) else None

    def sum(self, *values: float) -> list[float]:
        return [a + b for a, b in zip(values, self.other.pop(0), strict=True)]


def divergence(
    group: TwoRanks, config: GuardConfig, run_dir: Path = Path("/nowhere"), start: Any = None
) -> Divergence:
    """Build the divergence handler of a run that has committed 16 samples."""

    class Written:
        """An event log that keeps nothing."""

        def write(self, *_: Any, **__: Any) -> None: ...

    job = SimpleNamespace(guard=config, train=SimpleNamespace(global_batch=8))
    checkpoints = SimpleNamespace(committed=16, settle=lambda step, wait: None)
    return Divergence(
        Guard(config), SimpleNamespace(job=job, run_dir=run_dir), start or StartPoint(None, False),  # type: ignore[arg-type]
        checkpoints, group, Written(),  # type: ignore[arg-type]
    )  # fmt: skip


def refused(why: str, mine: bool) -> Update:
    return Update(np.zeros(1), float("nan"), 8.0, float("nan"), {}, why, mine)


def test_a_nan_on_one_rank_is_the_same_error_on_both() -> None:
    why = "the loss is not finite"
    guilty = divergence(TwoRanks(1, [([1, 2], False)]), plain(GuardConfig))
    innocent = divergence(TwoRanks(0, [([12, 13, 20], True)]), plain(GuardConfig))
    messages = []
    for one, mine, ids in ((guilty, True, (12, 13, 20)), (innocent, False, (1, 2))):
        with pytest.raises(NonFiniteError) as caught:
            one.handle(refused(why, mine), "", np.array(ids), 7, 48)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert f"{why} in step 7 (rank 1; global samples 12-13, 20)" in messages[0]
    assert "that update wasn't made" in messages[0]


def test_skips_are_remembered_and_bounded() -> None:
    one = divergence(TwoRanks(0, [([1], False)] * 3), plain(GuardConfig, "skip", max_consecutive=2))
    bad = refused("the loss is not finite", True)
    for first in (48, 56):
        one.handle(bad, "", np.array([0]), 7, first)
    with pytest.raises(NonFiniteError, match="3 updates in a row weren't made"):
        one.handle(bad, "", np.array([0]), 9, 64)
    assert one.guard.skipped == [(48, 55), (56, 63), (64, 71)]


def test_another_models_updates_dont_excuse_a_model_that_diverges() -> None:
    one = divergence(TwoRanks(0, [([1], False)] * 3), plain(GuardConfig, "skip", max_consecutive=2))
    bad = refused("is not finite", True)
    for _ in range(2):
        one.handle(bad, "train/", np.array([0]), 7, 48)
        one.guard.record_update("critic/")
    again = Guard(one.guard.config)
    again.restore(json.loads(json.dumps(one.guard.state())))
    assert again.consecutive == {"train/": 2}
    with pytest.raises(NonFiniteError, match="3 updates in a row weren't made"):
        one.handle(bad, "train/", np.array([0]), 9, 64)
    again.record_update("train/")
    assert again.consecutive == {}


def test_a_rewind_goes_past_the_samples_since_the_last_checkpoint(tmp_path: Path) -> None:
    bad, group = refused("the loss is not finite", True), TwoRanks(0, [([1], False)] * 9)
    one = divergence(group, plain(GuardConfig, "rewind"), tmp_path)
    with pytest.raises(RewindError, match="past the samples 16-55 since"):
        one.handle(bad, "", np.array([0]), 7, 48)
    assert windows_from(tmp_path, 16) == ((16, 55),)
    again = SimpleNamespace(consumed=16, windows=windows_from(tmp_path, 16))
    one = divergence(group, plain(GuardConfig, "rewind"), tmp_path, again)
    with pytest.raises(RewindError, match="past the samples 56-79 since"):
        one.handle(bad, "", np.array([0]), 5, 72)
    assert windows_from(tmp_path, 16) == ((16, 55), (56, 79))
    assert windows_from(tmp_path, 8) == ()
    often = SimpleNamespace(consumed=16, windows=((16, 55),) * 3)
    one = divergence(group, plain(GuardConfig, "rewind"), tmp_path, often)
    with pytest.raises(NonFiniteError, match="gone back to its last checkpoint 3 times"):
        one.handle(bad, "", np.array([0]), 5, 72)


def test_a_finite_loss_is_the_mean_over_all_ranks() -> None:
    group: Any = TwoRanks(0, [[6.0, 0.0], [6.0, 1.0], [0.0, 0.0]])
    assert global_loss(4.0, 5.0, group) == 2.0
    assert np.isnan(global_loss(4.0, 5.0, group))
    assert global_loss(float("nan"), 5.0, TwoRanks(0, [[6.0, -1.0]])) == 1.2  # type: ignore[arg-type]


def test_a_spike_is_told_from_noise() -> None:
    rng = np.random.default_rng(5)
    guard = Guard(plain(GuardConfig, spike_z=8.0))
    assert guard.refusal(1e9) is None, "nothing to compare with yet"
    for loss in 3 + 0.1 * rng.standard_normal(100):
        assert guard.refusal(loss) is None
        guard.record_loss(loss)
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

    told = DataError("shard 3 is missing")
    with pytest.raises(DataError, match="shard 3"):
        on_all_ranks(TwoRanks(0, [[0.0], False]), fail)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shard 3"):
        on_all_ranks(TwoRanks(1, [[1.0], True, told]), lambda: 1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shard 3"):
        on_rank_zero(TwoRanks(1, [(None, told)]), lambda: 1)  # type: ignore[arg-type]
    assert on_rank_zero(TwoRanks(1, [(7, None)]), lambda: 1) == 7  # type: ignore[arg-type]


EVERY = tuple(product(("adamw", "muon"), ("fp32", "bf16"), range(4)))
FEW = (("adamw", "bf16", 3), ("muon", "fp32", 2))


@pytest.mark.parametrize("cases", [FEW, pytest.param(EVERY, marks=pytest.mark.slow)], ids=len)
def test_an_infinite_gradient_is_not_applied(
    tmp_path: Path, cases: tuple[tuple[str, str, int], ...]
) -> None:
    """Weights and moments stay under the stages of the real engine, and the next update is the same."""
    from servers import free_port

    run_ranks(_infinite_gradient, (free_port(), tmp_path, cases), 1)
    assert {path.name for path in tmp_path.glob("ok-*")} == {
        f"ok-{optimizer}-{precision}-{stage}" for optimizer, precision, stage in cases
    }


def _infinite_gradient(
    rank: int, port: int, folder: Path, cases: tuple[tuple[str, str, int], ...]
) -> None:
    import os

    import torch

    from engine.probe import SEED, VOCAB, Case, batches, job_of

    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    from raymill.driver.worker import send_output_to
    from raymill.engine.device import join_deepspeed
    from raymill.engine.group import WorkerGroup
    from raymill.engine.trainer import Trainer
    from raymill.model.build import plan_model
    from raymill.objective.language_modeling import LanguageModeling

    send_output_to(folder / "log")
    torch.distributed.init_process_group("gloo")
    join_deepspeed(gpu=False)
    group = WorkerGroup(torch.device("cpu"))
    rows = Rows(batches(1)[0], np.full(8, 33, dtype=np.int32))

    def step(trainer: Trainer, poison: float) -> float:
        for first in (0, 4):
            trainer.begin_micro_batch(last=first == 4)
            losses = LanguageModeling(0).losses(
                trainer.engine, rows.part(first, first + 4), group.device
            )
            trainer.backward(losses.sum() * (poison if first == 4 else 1.0), 256.0)
        return trainer.update(0.01)

    def state(trainer: Trainer) -> list[np.ndarray]:
        return [array.copy() for _, _, arrays in trainer.fragments() for array in arrays.values()]

    for optimizer, precision, stage in cases:
        job = job_of(Case(stage, micro_batch=4, precision=precision, optimizer=optimizer))
        found = []
        for poisons in ((float("inf"), float("nan")), ()):
            trainer = Trainer(job, plan_model(job.arch, VOCAB, 0, SEED), group)
            for poison in poisons:
                before = state(trainer)
                assert not np.isfinite(step(trainer, poison))
                assert all(map(np.array_equal, before, state(trainer)))
            assert np.isfinite(step(trainer, 1.0))
            found.append(state(trainer))
            assert trainer.updates == 1
        assert all(map(np.array_equal, *found)), "nothing of it is left in the next gradient"
        (folder / f"ok-{optimizer}-{precision}-{stage}").touch()


def test_names_and_seeds() -> None:
    assert format_ranges([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
    seeds = {step_seed(seed, step, rank) for seed in (1, 2) for step in (1, 2) for rank in (0, 1)}
    assert len(seeds) == 8
    assert max(seeds) < 2**63
