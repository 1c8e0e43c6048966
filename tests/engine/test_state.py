"""State that was committed is loaded bit by bit, and training goes on as if it had never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.probe import Case, resumed, spawn


@pytest.mark.parametrize("world", [1, 2])
def test_resume_is_bit_exact_in_every_layout(world: int, tmp_path: Path) -> None:
    check_every_layout(world, tmp_path)


def check_every_layout(world: int, tmp_path: Path, gpu: bool = False) -> None:
    cases = [
        Case(stage, precision=precision, steps=8, save_at=5)
        for precision in ("fp32", "bf16")
        for stage in (0, 1, 2, 3)
    ]
    cases += [Case(stage, steps=8, save_at=5, offload="cpu") for stage in (2, 3)]
    through = spawn(world, cases, tmp_path, gpu)
    again = spawn(world, [resumed(case) for case in cases], tmp_path, gpu)
    for case in cases:
        assert again[case.name]["identical"], case.name
        assert again[case.name]["losses"] == through[case.name]["losses"][5:], case.name  # type: ignore[index]
        assert again[case.name]["norms"] == through[case.name]["norms"][5:], case.name  # type: ignore[index]


def test_other_world_sizes_and_stages_across_restarts(tmp_path: Path) -> None:
    """Two, one, two, three and one workers, under ZeRO 1, 3, 2, 0 and 1: each loads bit by bit what the one
    before committed, and the losses are those of a run that stayed as it was."""
    whole = Case(1, steps=25, batch=12, micro_batch=2, of=25)
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
