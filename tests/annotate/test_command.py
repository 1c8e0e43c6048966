"""`jobs/rank.py` end to end: a page until Ctrl-C, or a ranking rule; then exported datasets."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pyarrow.parquet as pq
import pytest

from generate.chat_factory import write_chat_folder
from raymill.annotate.command import run
from raymill.config import load
from raymill.data.preference.comparison import Comparison, read_comparison
from raymill.errors import ConfigError, DataError, StorageError

_START = """
import sys
from raymill.config.entry import main
from raymill.annotate.command import run
sys.exit(main("rank", run))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def given(tmp_path: Path, model: Path) -> list[str]:
    records = [
        {"prompt": f"What is {n}?", "answer": f"It is {n}.", "id": f"q{n}"} for n in range(6)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return [
        f"model={model}", f"data.path={path}", f"storage.root={tmp_path}", "tracking=none",
        "data.validation.fraction=0.0001", "max_new_tokens=8", "name=mine",
    ]  # fmt: skip


def exported(tmp_path: Path, name: str = "preferences") -> list[dict[str, Any]]:
    return pq.read_table(tmp_path / "rankings" / "mine" / f"{name}.parquet").to_pylist()


def test_a_rule_judges_without_a_page(
    tmp_path: Path, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    job = load("rank", [*given, "judge=length", "answers=3", "prompts=5"])
    assert run(job) == 0
    said = capsys.readouterr().out
    assert "standing in for human annotators" in said and "preferences.parquet" in said
    rows = exported(tmp_path)
    assert len(rows) == 5
    for row in rows:
        assert row["judge"] == row["annotator"] == "synthetic:length"
        assert isinstance(read_comparison(row, "rankings"), Comparison)
        by_rank = [text for _, text in sorted(zip(row["ranks"], row["answers"], strict=True))]
        assert [*map(len, by_rank)] == sorted(map(len, row["answers"]))
        assert set(row["models"]) == {str(job.model[0])}
    assert run(job) == 0 and exported(tmp_path) == rows  # nothing is made or judged again
    # The judgments of another rule are added to them.
    assert run(load("rank", [*given, "judge=answer_f1", "answers=3", "prompts=5"])) == 0
    assert {row["judge"] for row in exported(tmp_path)} >= {"synthetic:length"}
    lineage = json.loads((tmp_path / "rankings/mine/preferences.json").read_text())
    assert lineage["judges"] == {"synthetic:length": 5, "synthetic:answer_f1": 5}
    assert lineage["models"][0]["model"] == str(job.model[0])


def test_what_cant_be_done_is_said_at_once(tmp_path: Path, given: list[str]) -> None:
    with pytest.raises(ConfigError, match="judge=lenght"):
        run(load("rank", [*given, "judge=lenght"]))
    with pytest.raises(ConfigError, match=r"instructions=.*can't be read"):
        run(load("rank", [*given, f"instructions={tmp_path}/none.md"]))
    with pytest.raises(ConfigError, match="no Hugging Face folder"):
        run(load("rank", [*given, f"model={tmp_path}"]))
    with pytest.raises(DataError, match="no judgments in"):
        run(load("rank", [*given, "name=other", "export_only=true"]))
    with pytest.raises(ConfigError, match="can't listen there"):
        run(load("rank", [*given, "host=203.0.113.1", "mode=write"]))
    with pytest.raises(DataError, match="holds nothing to export yet"):
        run(load("rank", [*given, "export_only=true"]))


def post(address: str, path: str, **body: Any) -> Any:
    base, _, token = address.partition("/?token=")
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    data = json.dumps({"annotator": "Ada", **body}).encode()
    request = urllib.request.Request(f"{base}/api/{path}", data, headers)
    with urllib.request.urlopen(request, timeout=20) as response:
        return json.load(response)


def test_a_page_is_served_until_ctrl_c_and_exports_then(tmp_path: Path, given: list[str]) -> None:
    command = [sys.executable, "-u", "-c", _START, *given, "instructions=null"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    try:
        lines = [process.stdout.readline() for _ in range(4)]
        assert lines[0].startswith("prompts    6 prompts"), (lines, process.stderr.read())
        address = lines[1].split()[1]
        assert address.startswith("http://127.0.0.1:") and "/?token=" in address
        assert lines[2].split() == ["judgments", f"{tmp_path}/rankings/mine/judgements.sqlite"]
        assert "export_only=true" in lines[3]
        with pytest.raises(HTTPError, match="401"):
            post(address[:-1], "next")
        told = post(address, "next")
        while told["state"] == "preparing":
            told = post(address, "next")
        item = told["task"]["item"]
        decided = {"id": "a-judgement", "item": item, "seconds": 2, "decision": "ranked"}
        post(address, "rank", **decided, ranks=[1, 2])
        # A second page on the same folder would be in the way.
        with pytest.raises(DataError, match="right now"):
            run(load("rank", given))
        # Exporting isn't.
        assert run(load("rank", [*given, "export_only=true"])) == 0
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "preferences.parquet" in said and "Traceback" not in errors
    [row] = exported(tmp_path)
    assert row["annotator"] == "Ada" and row["judge"] == "human" and len(row["answers"]) == 2


def test_judgments_are_kept_in_an_object_store(
    tmp_path: Path, given: list[str], uri: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Another machine fetches the judgments and adds its own."""
    here, there = (
        [*(text for text in given if not text.startswith("storage.")), f"storage.root={uri}",
         f"storage.scratch={tmp_path / machine}", "answers=3", "prompts=5"]
        for machine in ("here", "there")
    )  # fmt: skip
    assert run(load("rank", [*here, "judge=length"])) == 0
    rows = exported(tmp_path / "here")
    capsys.readouterr()
    assert run(load("rank", [*there, "judge=length"])) == 0
    assert f"downloading {uri}/rankings/mine" in capsys.readouterr().out
    assert exported(tmp_path / "there") == rows
    assert run(load("rank", [*there, "judge=answer_f1"])) == 0
    shutil.rmtree(tmp_path / "here")
    assert run(load("rank", [*here, "export_only=true"])) == 0
    newest = exported(tmp_path / "there")
    assert exported(tmp_path / "here") == newest != rows
    # Back on the first machine, whose judgments are older, they are fetched, and not put over the newer ones.
    assert run(load("rank", [*there, "judge=answer_f1", "prompts=6"])) == 0
    assert run(load("rank", [*here, "judge=answer_f1", "prompts=6"])) == 0
    assert exported(tmp_path / "here") == exported(tmp_path / "there") != newest
    # On both at once: neither is lost.
    with monkeypatch.context() as patch:
        patch.setattr("raymill.annotate.command.pull_newest", lambda *_: None)
        assert run(load("rank", [*here, "judge=length", "prompts=6"])) == 0
        patch.setattr("raymill.annotate.command.push_newest", lambda *_: None)
        assert run(load("rank", [*there, "judge=length", "judge_noise=0.2", "prompts=6"])) == 0
    with pytest.raises(StorageError, match="both changed"):
        run(load("rank", [*there, "judge=length", "prompts=6"]))
