"""Validation of names of reward functions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raymill.rl.reward.functions import REWARDS, resolve
from raymill.rl.reward.names import check_names, check_verifiers
from rl.reward import hostile


def test_names_that_can_be_used() -> None:
    names = [
        "exact",
        "auto",
        "rl.reward.hostile:behave",
        "http://localhost:8000/score?a=b",
        "https://x",
    ]
    assert check_names(names) == []
    assert resolve("rl.reward.hostile:behave") is hostile.behave
    assert resolve("exact") is REWARDS["exact"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exakt", "did you mean exact?"),
        ("qwertz", "there are answer_f1, auto, code"),
        ("", "unknown function"),
        ("rl.reward.hostile:", "unknown function"),
        ("rl.reward.hostile:misses", "import failed: …AttributeError"),
        ("no_such_module:f", "import failed: …ModuleNotFoundError"),
        ("rl.reward.hostile:not_a_function", "is int, not a function"),
        ("http://", "expected http://host:port/path"),
        ("http://host:99999/", "not an address"),
        ("http://[::1/", "not an address"),
        ("http://user:secret@host/", "would be logged"),
        ("http://host/#part", "never sent"),
    ],
)
def test_names_that_cannot(name: str, said: str) -> None:
    (problem,) = check_names([name])
    assert all(part in problem for part in said.split("…"))


def test_own_modules_are_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rewards.py").write_text("class A:\n    brevity = staticmethod(lambda s: 1.0)\n")
    (tmp_path / "my_exit.py").write_text("raise SystemExit('no')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert check_names(["my_rewards:A.brevity"]) == []
    assert "SystemExit: no" in check_names(["my_exit:f"])[0]


def test_verifiers_of_prompts() -> None:
    assert check_verifiers(["exact", "code", "none", None, "exact", "tests_own"]) == []
    problems = check_verifiers(["exakt", "rl.reward.hostile:behave", "http://x/"])
    assert len(problems) == 3
    assert "did you mean exact?" in problems[0]
