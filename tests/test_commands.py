"""Suggested commands can be pasted: the shell and the configuration parse them as intended."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data.sources.test_links import ALL_IN_THREE, HOSTILE
from raymill.config import load
from raymill.config.compose import of_kind
from raymill.data.sources.globs import matches
from raymill.errors import DataError
from raymill.redaction import append_arguments, job_command, override, typed_command
from raymill.report.page import _commands


def loaded(command: str) -> Any:
    """Return the configuration that a pasted command gives."""
    python, script, *arguments = shlex.split(command, comments=True)
    assert python == "python" and script.startswith("jobs/")
    return load(Path(script).stem, arguments)


@pytest.mark.parametrize("name", ALL_IN_THREE)
def test_suggested_commands_are_understood(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    root, data = f"storage.root={folder}", f"data.path={folder}/x"
    parts = [override("storage.root", folder), override("data.path", folder / "x")]
    for command in (
        job_command("prepare", "kind=chat", root, data),
        " ".join([job_command("prepare", "kind=chat"), *parts]),
    ):
        job = loaded(command)
        assert job.storage.root == str(folder) and job.data.path == (f"{folder}/x",)
    summary = {"export": str(folder), "command": "python jobs/sft.py", "going_on": "train.steps=9"}
    use, go_on = _commands(summary, ("chat", "model")).split("\n\n")
    assert loaded(use.splitlines()[1]).model == str(folder)
    assert go_on.splitlines()[1] == "python jobs/sft.py train.steps=9"
    monkeypatch.setattr(sys, "argv", ["jobs/pretrain.py", root, "tracking.uri=http://u:secret@h"])
    typed = append_arguments(typed_command(), "train.steps=500")
    job = loaded(typed)
    assert job.storage.root == str(folder) and job.train.steps == 500
    assert "add them" in typed and "secret" not in typed


def test_a_shell_parses_them_as_intended() -> None:
    commands = [job_command("chat", f"model=/m/{name}") for name in HOSTILE]
    script = "\n".join(command.replace("python", r"printf '%s\0'", 1) for command in commands)
    output = subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout.decode()
    parsed = [text for text in output.split("\0") if text.startswith("model=")]
    assert parsed == [f"model=/m/{name}" for name in HOSTILE]


@pytest.mark.parametrize("name", ALL_IN_THREE)
def test_the_advice_about_several_splits_helps(tmp_path: Path, name: str) -> None:
    saved = tmp_path / name
    (saved / "train").mkdir(parents=True)
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    (saved / "train" / "data.arrow").write_bytes(b"")
    with pytest.raises(DataError, match="several splits") as refusal:
        matches(str(saved))
    advice = str(refusal.value).partition("as in ")[2].partition(", and perhaps")[0]
    [argument] = shlex.split(advice)
    job, overrides = of_kind("prepare", ["kind=chat", argument])
    [path] = load("prepare", ["kind=chat", *overrides]).data.path
    assert job == "prepare_chat" and len([*matches(path)[1]]) == 1
