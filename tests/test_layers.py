"""Layers point one way: the pure core stays pure, and heavy libraries stay behind their doors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "platform" / "raymill"
PURE = (
    "config", "plan", "checkpoint", "data/order.py", "data/pack.py", "data/rows.py",
    "data/manifest.py", "data/chat/pack.py", "data/chat/template.py", "data/chat/encode.py",
    "objective", "engine/schedule.py", "engine/settings.py", "engine/journal.py",
    "evaluate", "generate/sampling.py", "report", "errors.py", "durable.py", "lifetime.py", "timeline.py",
    "progress_line.py",
)  # fmt: skip
TORCHLESS = ("config", "storage", "plan", "checkpoint", "data")
DOORS = {
    "ray": (
        "cluster",
        "data/stream.py",
        "data/tasks.py",
        "rollout/actor.py",
        "rollout/crew.py",
        "rollout/pool.py",
    ),
    "deepspeed": ("engine/device.py", "engine/trainer.py"),
    "mlflow": ("track",),
    "hydra": ("config/compose.py",),
    "fastapi": ("serve",),
    "obstore": ("storage/bucket.py",),
}
# From the ground up; a room may import itself and what stands before it.
ROOMS = (
    "errors", "durable", "lifetime", "timeline", "progress_line", "config", "storage", "checkpoint",
    "data", "plan", "objective", "model", "generate", "evaluate", "rollout", "reward", "engine", "track",
    "report", "demo", "serve", "cluster",
)  # fmt: skip
# A job's entry point reaches up for the session and the registry it is given; the checks ask the plan, and
# arch=from_model how a folder spells its shape: both need the schema alone.
UPWARD = {
    ("data/prepare.py", "cluster"),
    ("generate/command.py", "track"),
    ("config/run_checks.py", "plan"),
    ("config/memory_check.py", "plan"),
    ("config/from_model.py", "model"),
}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(path: Path, deep: bool = True) -> Iterator[str]:
    """Names imported anywhere in a module, or at its top level only; not under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            stack += ast.iter_child_nodes(node)


def inside(path: Path, places: tuple[str, ...]) -> bool:
    relative = path.relative_to(PACKAGE).as_posix()
    return any(relative == place or relative.startswith(f"{place}/") for place in places)


@pytest.mark.parametrize("library", sorted(DOORS))
def test_libraries_stay_behind_their_doors(library: str) -> None:
    for path in modules():
        if not inside(path, DOORS[library]):
            assert library not in {name.split(".")[0] for name in imports(path)}, path


def test_the_pure_core_is_pure() -> None:
    for path in modules():
        roots = {name.split(".")[0] for name in imports(path)}
        if inside(path, PURE):
            assert not roots & {"ray", "deepspeed", "mlflow"}, path
        if inside(path, TORCHLESS):
            assert "torch" not in roots, path


def test_rooms_import_downward_only() -> None:
    for path in modules():
        relative = path.relative_to(PACKAGE)
        room = relative.parts[0].removesuffix(".py")
        if room not in ROOMS:
            continue
        for name in imports(path):
            parts = name.split(".")
            if parts[0] == "raymill" and len(parts) > 1:
                allowed = ROOMS.index(parts[1]) <= ROOMS.index(room)
                assert allowed or (relative.as_posix(), parts[1]) in UPWARD, f"{path} → {name}"


def test_no_import_cycles() -> None:
    graph = {}
    for path in modules():
        name = ".".join(("raymill", *path.relative_to(PACKAGE).with_suffix("").parts))
        graph[name.removesuffix(".__init__")] = {
            target for target in imports(path, deep=False) if target.startswith("raymill")
        }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name in graph and name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
