"""Committed state is loaded bit by bit, and training continues as if it had never stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engine.probe import Case, resumed, spawn


@pytest.mark.parametrize("world", [1, 2])
def test_resume_is_bit_exact(world: int, tmp_path: Path) -> None:
    """Check a few layouts; the slow test checks every one."""
    layouts = [(0, "bf16"), (1, "fp32"), (3, "bf16")] if world == 1 else [(1, "bf16"), (3, "fp32")]
    cases = [
        Case(stage, precision=precision, steps=8, save_at=5, optimizer=optimizer)
        for (stage, precision), optimizer in zip(layouts, ("muon", "adamw", "muon"), strict=False)
    ]
    cases.append(Case(2, steps=8, save_at=5, offload="cpu"))
    check_layouts(world, cases, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_resume_is_bit_exact_in_every_layout(world: int, tmp_path: Path) -> None:
    check_every_layout(world, tmp_path)


def check_every_layout(
    world: int, tmp_path: Path, gpu: bool = False, optimizers: Sequence[str] = ("adamw", "muon")
) -> None:
    cases = [
        Case(stage, precision=precision, steps=8, save_at=5, optimizer=optimizer)
        for optimizer in optimizers
        for precision in ("fp32", "bf16")
        for stage in (0, 1, 2, 3)
    ]
    cases += [
        Case(stage, steps=8, save_at=5, offload="cpu", optimizer=optimizer)
        for optimizer in optimizers
        for stage in (2, 3)
    ]
    check_layouts(world, cases, tmp_path, gpu)


def check_layouts(world: int, cases: Sequence[Case], tmp_path: Path, gpu: bool = False) -> None:
    through = spawn(world, cases, tmp_path, gpu)
    again = spawn(world, [resumed(case) for case in cases], tmp_path, gpu)
    for case in cases:
        # ZeRO-0 keeps whole parameters, so there is nothing to assemble.
        assert bool(through[case.name]["assembled"]) == (case.stage > 0), case.name
        assert again[case.name]["identical"], case.name
        assert again[case.name]["losses"] == through[case.name]["losses"][5:], case.name  # type: ignore[index]
        assert again[case.name]["norms"] == through[case.name]["norms"][5:], case.name  # type: ignore[index]


def test_other_world_sizes_and_stages_across_restarts(tmp_path: Path) -> None:
    """Resume with two, one, two, three and one workers, under ZeRO 1, 3, 2, 0 and 1.

    Each loads bit by bit what the one before committed, and the losses are those of an unchanged run.
    """
    wholes = [
        Case(1, steps=10, batch=12, micro_batch=2, of=10, optimizer=optimizer)
        for optimizer in ("adamw", "muon")
    ]
    through = spawn(1, wholes, tmp_path / "through")
    losses: dict[str, list[float]] = {whole.optimizer: [] for whole in wholes}
    checkpoints = tmp_path / "moved" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for until, world, stage in ((2, 2, 1), (4, 1, 3), (6, 2, 2), (8, 3, 0), (10, 1, 1)):
        cases = [
            replace(whole, stage=stage, steps=until, save_at=until, resume=until > 2)
            for whole in wholes
        ]
        for case in cases:
            (checkpoints / case.optimizer).mkdir(exist_ok=True)
            if not (checkpoints / case.name).exists():
                (checkpoints / case.name).symlink_to(checkpoints / case.optimizer)
        reports = spawn(world, cases, tmp_path / "moved")
        for case in cases:
            assert reports[case.name].get("identical", True), (world, stage, case.optimizer)
            losses[case.optimizer] += reports[case.name]["losses"]  # type: ignore[arg-type]
    for whole in wholes:
        expected = through[whole.name]["losses"]
        assert losses[whole.optimizer] == pytest.approx(expected, rel=1e-4), whole.optimizer


def test_a_fork_from_adamw_to_muon_takes_the_weights_alone(tmp_path: Path) -> None:
    adamw = Case(1, steps=8, save_at=5)
    before = spawn(1, [adamw], tmp_path)[adamw.name]["losses"]
    forks = [Case(s, steps=8, resume=True, fresh_moments=True, optimizer="muon") for s in (0, 1, 3)]
    for fork in forks:
        (tmp_path / "checkpoints" / fork.name).symlink_to(tmp_path / "checkpoints" / adamw.name)
    found = spawn(1, forks, tmp_path)
    for fork in forks:
        assert found[fork.name]["identical"], "the checkpoint's weights, and moments of zero"
        losses = found[fork.name]["losses"]
        assert losses[0] == pytest.approx(before[5], rel=1e-6)  # type: ignore[index]
        assert losses[2] != pytest.approx(before[7], rel=1e-4)  # type: ignore[index]
        assert losses == pytest.approx(found[forks[0].name]["losses"], rel=1e-4)
