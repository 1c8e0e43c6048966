"""The tree's shape: what may stand where, and that `platform` stays the standard library's."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {
    "pyproject.toml", "README.md", "Makefile", "platform", "conf", "jobs", "tests", "k8s", "docs",
    "bench", "tools", ".ci", ".gitignore", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "constraints.txt",
}  # fmt: skip


def tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def test_platform_is_never_a_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()
    done = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.__file__, platform.system())"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split()[0].endswith("/platform.py")


def test_top_level() -> None:
    assert {path.split("/")[0] for path in tracked()} <= TOP_LEVEL


def test_every_module_is_tracked() -> None:
    """Files that .gitignore hides are in no clone, and in no submitted job."""
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("platform", "jobs", "conf", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    done = subprocess.run(
        ["git", "check-ignore", *sorted(files)], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.stdout == ""


def test_rooms_are_small() -> None:
    for path in (ROOT / "platform").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 400, path
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path


def test_every_module_says_why_it_exists() -> None:
    for path in (ROOT / "platform").rglob("*.py"):
        assert path.read_text().startswith('"""'), path


def test_class_names_are_unique() -> None:
    """A reader who searches for a class finds one; names that begin with an underscore are local."""
    modules = defaultdict(list)
    for path in sorted((ROOT / "platform").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules[node.name].append(path.relative_to(ROOT).as_posix())
    assert {name: paths for name, paths in modules.items() if len(paths) > 1} == {}
