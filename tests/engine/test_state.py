"""State that was committed is loaded bit by bit, and training goes on as if it had never stopped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.probe import Case, resumed, spawn


@pytest.mark.parametrize("world", [1, 2])
def test_resume_is_bit_exact_in_every_layout(world: int, tmp_path: Path) -> None:
    cases = [
        Case(stage, precision=precision, steps=8, save_at=5)
        for precision in ("fp32", "bf16")
        for stage in (0, 1, 2, 3)
    ]
    cases += [Case(stage, steps=8, save_at=5, offload="cpu") for stage in (2, 3)]
    through = spawn(world, cases, tmp_path)
    again = spawn(world, [resumed(case) for case in cases], tmp_path)
    for case in cases:
        assert again[case.name]["identical"], case.name
        assert again[case.name]["losses"] == through[case.name]["losses"][5:], case.name  # type: ignore[index]
        assert again[case.name]["norms"] == through[case.name]["norms"][5:], case.name  # type: ignore[index]


def test_another_world_size_and_stage_load_the_same_state(tmp_path: Path) -> None:
    saved = Case(3, steps=8, save_at=5)
    through = spawn(2, [saved], tmp_path)[saved.name]
    for world, stage in ((1, 0), (1, 1), (2, 2)):
        case = replace(resumed(saved), stage=stage)
        target = tmp_path / "checkpoints" / case.name
        if not target.exists():
            target.symlink_to(tmp_path / "checkpoints" / saved.name)
        report = spawn(world, [case], tmp_path)[case.name]
        assert report["identical"], (world, stage)
        assert report["losses"] == pytest.approx(through["losses"][5:], rel=1e-4)  # type: ignore[index]
