"""Several sources through the command line: what a run measures and reports."""

from __future__ import annotations

import shutil

import pytest

from driver import job
from driver.conftest import Workshop
from raymill.config import load
from raymill.data.store.manifest import load_prepared
from raymill.driver.resolution import prepared_folders

pytestmark = pytest.mark.integration


def test_a_mixture_measures_every_source(workshop: Workshop) -> None:
    root = f"storage.root={workshop.root / 'storage'}"
    [folder] = prepared_folders(load("pretrain", [*workshop.overrides, root]))
    again = workshop.root / "again"
    shutil.copytree(folder, again)
    code, output = job.run(
        "pretrain", *workshop.overrides, "run.name=mixed", "tracking=none", "train.steps=3",
        f"data.mixture={{{folder.name}: 0.9985, {again}: 0.0015}}", "evaluation.every=0",
        cwd=workshop.root,
    )  # fmt: skip
    assert code == 0, output
    name = load_prepared(folder).manifest.name
    last = job.events(workshop.run_dir("mixed"), "evaluation")[-1]
    for figure in ("loss", "bits_per_byte"):
        own = last[f"eval/{name}/{figure}"]
        assert last[f"eval/{name}~2/{figure}"] == own, "the same text twice"
        assert last[f"eval/{figure}"] == pytest.approx(own, rel=1e-12)
    assert f"the weighted mean of 2 sources\n          {name} " in output
    assert f"({name} {last['eval/bits_per_byte']:.4f}, {name}~2 " in output
    report = (workshop.run_dir("mixed") / "report.html").read_text()
    assert f"{name}~2: held-out text" in report
