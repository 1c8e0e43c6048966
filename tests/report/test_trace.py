"""A run's samples and a folder's rows are traced to the documents that they hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint.test_commit import manifest
from data.prepared_factory import write_prepared
from data.text.test_lineage import prepared
from raymill.config import load
from raymill.engine.start import order_of
from raymill.errors import ConfigError, DataError
from raymill.report.trace import order_of_run, run
from raymill.schema.tree import flatten


def trace(*overrides: str) -> int:
    job: Any = load("audit", list(overrides))
    return run(job)


def test_the_order_of_a_run_is_the_one_that_it_trained_in(tmp_path: Path) -> None:
    folders = [tmp_path / "storage" / "data" / name for name in ("wiki.b-1", "code-2", "books-3")]
    data = [
        write_prepared(folder, seed=seed, shard_rows=(60, 31))
        for seed, folder in enumerate(folders)
    ]
    job: Any = load(
        "pretrain",
        [
            "data.mixture={wiki.b-1: 3, code-2: 1, " + f"{folders[2]}: 2" + "}",
            "data.mixture_changes={20: {wiki.b-1: 1}, 62.5%: {wiki.b-1: 1, code-2: 5}}",
            "data.max_epochs={code-2: 2}", "data.window_row_groups=2", "train.steps=40",
            "train.global_batch=8", "run.seed=11",
        ],
    )  # fmt: skip
    # A checkpoint's configuration has no order.
    config = dict(sorted(flatten(job).items()))
    stored = replace(manifest(40), config=json.loads(json.dumps(config)), order_version=2)
    expected = order_of(job, data, tuple(job.data.mixture.values())).locate(0, 300)
    found = order_of_run(stored, data).locate(0, 300)
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values)


def test_a_row_names_its_documents_and_shows_their_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepared(tmp_path, packing="best_fit")
    capsys.readouterr()
    rows = data.manifest.splits["train"].rows
    for row in range(rows):
        trace(f"trace.data={data.folder}", f"trace.row={row}")
    lines = [line for line in capsys.readouterr().out.splitlines() if "offset" in line]
    named = {line.split(": ")[1].split(", sha256")[0] for line in lines}
    assert data.manifest.text is not None
    assert len(named) == data.manifest.text.packing["train"]["documents"]
    [first] = [line for line in lines if "records.jsonl" in line and '"line 1 "' in line]
    text = (tmp_path / "texts" / "records.jsonl").read_text().splitlines(keepends=True)
    assert f"offset {len(text[0])}, length {len(text[1])}, sha256" in first
    with pytest.raises(ConfigError, match=f"has {rows} training rows"):
        trace(f"trace.data={data.folder}", f"trace.row={rows}")


def test_what_cannot_be_traced_is_said(tmp_path: Path) -> None:
    write_prepared(tmp_path / "data" / "old")
    with pytest.raises(DataError, match="has no lineage"):
        trace("trace.data=old", "trace.row=1", f"storage.root={tmp_path}")
    for overrides, said in (
        (["trace.data=old"], "trace.row: name the row"),
        (["trace.row=1"], "name it by trace.data"),
        (["run.name=a", "trace.step=1", "trace.sample=1"], "give one"),
    ):
        with pytest.raises(ConfigError, match=said):
            load("audit", overrides)
    with pytest.raises(ConfigError, match="has no checkpoint"):
        trace("run.name=none", "trace.sample=0", f"storage.root={tmp_path}")
