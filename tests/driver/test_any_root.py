"""A run below a folder of any name is a run like any other, and leaves nothing elsewhere."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from driver.job import run
from raymill.config import load
from raymill.track.registry import resolve_model

NAME = "-is it? %20 100%3F ü漢#&=,@[1];'q\""


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_run_below_a_folder_of_any_name(tmp_path: Path) -> None:
    texts, root = tmp_path / "texts" / NAME, tmp_path / "roots" / NAME
    texts.mkdir(parents=True)
    for number in range(8):
        (texts / f"{number}.txt").write_text(f"The mill number {number} grinds wheat. " * 60)
    given = (
        "experiment=tiny", "data=files", f"data.path={texts}", "data.name=t", f"storage.root={root}",
        "train.steps=6", "run.name=r",
    )  # fmt: skip
    for job in ("prepare", "pretrain"):
        code, said = run(job, *given, cwd=tmp_path)
        assert code == 0, said
    command = json.loads((root / "runs" / "r" / "summary.json").read_text())["command"]
    assert shlex.split(command)[2:] == [*given]
    found = resolve_model("models:/assistant@pretrained", load("pretrain", given).tracking, root)
    assert found.folder.is_relative_to(root / "mlartifacts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["roots", "texts"]
    assert [path.name for path in (tmp_path / "roots").iterdir()] == [NAME]
    code, said = run("chat", f"model={root / 'runs' / 'r' / 'export'}", "prompt=The", cwd=tmp_path)
    assert code == 0 and said.startswith(str(root))
