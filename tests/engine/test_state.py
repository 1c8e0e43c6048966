"""State that was committed is loaded bit by bit, and training goes on as if it had never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.probe import Case, resumed, spawn


@pytest.mark.parametrize("world", [1, 2])
def test_resume_is_bit_exact_in_every_layout(world: int, tmp_path: Path) -> None:
    check_every_layout(world, tmp_path)


def test_muon_resumes_bit_exactly_in_every_layout(tmp_path: Path) -> None:
    check_every_layout(2, tmp_path, optimizer="muon")


def check_every_layout(
    world: int, tmp_path: Path, gpu: bool = False, optimizer: str = "adamw"
) -> None:
    eight = Case(steps=8, save_at=5, optimizer=optimizer)
    cases = [
        replace(eight, stage=stage, precision=precision)
        for precision in ("fp32", "bf16")
        for stage in (0, 1, 2, 3)
    ]
    cases += [replace(eight, stage=stage, offload="cpu") for stage in (2, 3)]
    through = spawn(world, cases, tmp_path, gpu)
    again = spawn(world, [resumed(case) for case in cases], tmp_path, gpu)
    for case in cases:
        assert again[case.name]["identical"], case.name
        assert again[case.name]["losses"] == through[case.name]["losses"][5:], case.name  # type: ignore[index]
        assert again[case.name]["norms"] == through[case.name]["norms"][5:], case.name  # type: ignore[index]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_other_world_sizes_and_stages_across_restarts(optimizer: str, tmp_path: Path) -> None:
    """Two, one, two, three and one workers, under ZeRO 1, 3, 2, 0 and 1: each loads bit by bit what the one
    before committed, and the losses are those of a run that stayed as it was."""
    whole = Case(1, steps=25, batch=12, micro_batch=2, of=25, optimizer=optimizer)
    through = spawn(1, [whole], tmp_path / "through")[whole.name]
    losses: list[float] = []
    checkpoints = tmp_path / "moved" / "checkpoints"
    checkpoints.mkdir(parents=True)
    for until, world, stage in ((5, 2, 1), (10, 1, 3), (15, 2, 2), (20, 3, 0), (25, 1, 1)):
        case = replace(whole, stage=stage, steps=until, save_at=until, resume=bool(losses))
        (checkpoints / "all").mkdir(exist_ok=True)
        if not (checkpoints / case.name).exists():
            (checkpoints / case.name).symlink_to(checkpoints / "all")
        report = spawn(world, [case], tmp_path / "moved")[case.name]
        assert report.get("identical", True), (world, stage)
        losses += report["losses"]  # type: ignore[arg-type]
    assert losses == pytest.approx(through["losses"], rel=1e-4)


def test_a_fork_from_adamw_to_muon_takes_the_weights_alone(tmp_path: Path) -> None:
    adamw = Case(1, steps=8, save_at=5)
    before = spawn(2, [adamw], tmp_path)[adamw.name]["losses"]
    forks = [Case(s, steps=8, resume=True, fresh_moments=True, optimizer="muon") for s in (0, 1, 3)]
    for fork in forks:
        (tmp_path / "checkpoints" / fork.name).symlink_to(tmp_path / "checkpoints" / adamw.name)
    found = spawn(2, forks, tmp_path)
    for fork in forks:
        assert found[fork.name]["identical"], "the checkpoint's weights, and moments of zero"
        losses = found[fork.name]["losses"]
        assert losses[0] == pytest.approx(before[5], rel=1e-6)  # type: ignore[index]
        assert losses[2] != pytest.approx(before[7], rel=1e-3)  # type: ignore[index]
        assert losses == pytest.approx(found[forks[0].name]["losses"], rel=1e-4)
