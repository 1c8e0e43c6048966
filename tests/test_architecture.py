"""docs/architecture.md is a true map: its functions exist, its walks are short, its rooms are all rooms."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from test_layers import PACKAGE, ROOMS

ROOT = PACKAGE.parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
FUNCTION = re.compile(r"`([\w/]+\.py):([\w.]+)`")
RL, TEXT, SAMPLING = (
    "From `main()` to the optimizer step",
    "From a text file to the loss",
    "One sampling call",
)
MAX_FILES = 25
MAX_HOPS = 20
MAX_FRAMES = 6


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def walk(title: str) -> list[tuple[str, str]]:
    """(file, function) of each step of a numbered list, whose numbers follow each other."""
    lines = re.findall(r"^(\d+)\. (.+)$", section(title), re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, len(lines) + 1))
    steps = []
    for _, line in lines:
        match = FUNCTION.match(line)
        assert match is not None, f"no function at the head of: {line}"
        steps.append((match[1], match[2]))
    return steps


def path_of(file: str) -> Path:
    return (ROOT if file.startswith("jobs/") else PACKAGE) / file


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes and methods of a module, as `function`, `Class` and `Class.method`."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (
                item
                for item in node.body
                if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)
            )
            names.update(f"{node.name}.{method.name}" for method in methods)
    return frozenset(names)


@pytest.mark.parametrize(("file", "name"), sorted(set(FUNCTION.findall(PAGE))))
def test_every_function_on_the_map_exists(file: str, name: str) -> None:
    path = path_of(file)
    assert path.exists(), file
    assert name in names_in(path), f"{file} has no {name}"


def test_each_step_is_found_in_a_file_that_is_open_already() -> None:
    """A reader who follows the walks meets the next name in a file that the page has opened before."""
    opened: list[str] = []
    for file, name in [step for title in (RL, TEXT, SAMPLING) for step in walk(title)]:
        text = "\n".join(path_of(earlier).read_text() for earlier in opened)
        found = file in opened or any(part in text for part in name.split("."))
        assert found or not opened, f"{file}:{name} isn't named in the files before it"
        opened.append(file)


def test_the_step_of_reinforcement_learning_is_short() -> None:
    assert len({file for file, _ in walk(RL)}) <= MAX_FILES


def test_the_way_of_a_text_is_short() -> None:
    assert len(walk(TEXT)) <= MAX_HOPS


def test_a_sampling_call_is_short() -> None:
    assert len(walk(SAMPLING)) <= MAX_FRAMES


def test_every_room_is_on_the_map_in_the_order_of_the_layers() -> None:
    listed = re.findall(r"^\| `(\w+)/` \|", section("Rooms"), re.MULTILINE)
    assert listed == [room for room in ROOMS if (PACKAGE / room).is_dir()]
