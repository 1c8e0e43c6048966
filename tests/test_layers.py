"""Layers point one way: the pure core stays pure, and heavy libraries stay behind their doors."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "platform" / "raymill"
PURE = (
    "schema", "config", "plan", "checkpoint", "data/store/order.py", "data/store/order_v1.py",
    "data/store/mixture.py", "data/store/pack.py", "data/store/rows.py",
    "data/store/manifest.py", "data/chat/pack.py", "data/messages/template.py", "data/messages/encode.py",
    "objective", "rl/advantages.py", "rl/losses.py", "rl/objective.py", "rl/rollout_batch.py",
    "engine/schedule.py", "engine/deepspeed_config.py", "engine/event_log.py",
    "evaluate", "generate/engine/request.py", "generate/engine/distribution.py",
    "generate/engine/row_sampler.py", "report", "errors.py", "causes.py", "reading.py", "durable.py",
    "parent_death.py", "timeline.py", "progress_line.py", "redaction.py",
)  # fmt: skip
TORCHLESS = ("schema", "config", "storage", "plan", "checkpoint", "data", "cluster")
DOORS = {
    "ray": (
        "cluster", "driver", "data/store/stream.py", "data/text/tasks.py", "data/cluster_tasks.py",
        "rl/rollout/actor_pool.py", "rl/rollout/pool.py", "serve/ray_app.py",
        "serve/ray_replicas.py",
    ),
    "deepspeed": ("engine/device.py", "engine/materialize.py", "engine/trainer.py"),
    "mlflow": ("track",),
    "hydra": ("config/compose.py", "config/values.py"),
    "fastapi": ("annotate",),
    "prometheus_client": ("serve",),
    "obstore": ("storage/bucket.py",),
    "httpx2": ("driver/remote_chat.py",),
    "llguidance": ("generate/constraint.py",),
}  # fmt: skip
# From the ground up; a room may import itself and what stands before it. Every room stands here.
ROOMS = (
    "__init__", "errors", "causes", "reading", "durable", "parent_death", "timeline", "progress_line",
    "redaction", "schema", "storage", "checkpoint", "cluster", "data", "plan", "objective", "model", "config",
    "generate", "evaluate", "engine", "rl", "recipes", "track", "report", "demo", "annotate", "serve",
    "driver",
)  # fmt: skip
# The rooms inside two of them, likewise.
INNER_ROOMS = {
    "data": (
        "__init__", "cluster_tasks", "store", "demo", "sources", "corpus", "text", "messages", "chat",
        "preference", "prompts", "kinds",
    ),
    "rl": (
        "__init__", "rollout", "reward", "losses", "rollout_batch", "shares", "rollout_backend", "advantages",
        "objective", "collector", "backend", "evaluation", "step",
    ),
}  # fmt: skip


def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        name = ".".join((package.name, *path.relative_to(package).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path: Path, package: Path = PACKAGE) -> tuple[str, ...]:
    """Modules imported anywhere in a module, late or not; only what TYPE_CHECKING guards is left out.

    `from package import name` is an import of `package.name` where that is a module.
    """
    return imports_of(path.read_text(), path, package)


@cache
def imports_of(text: str, path: Path, package: Path) -> tuple[str, ...]:
    """Imports of a module with this text; every test asks for them again."""
    found: list[str] = []
    stack: list[ast.AST] = [ast.parse(text)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            stack += node.orelse
        elif isinstance(node, ast.Import):
            found += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = source_of(node, path, package)
            found += {module_named(source, alias.name, package) for alias in node.names}
        else:
            # Expressions hold no imports, and are most of the tree.
            children = ast.iter_child_nodes(node)
            stack += (child for child in children if not isinstance(child, ast.expr))
    return tuple(found)


def source_of(node: ast.ImportFrom, path: Path, package: Path) -> str:
    """The package or module after `from`, dots resolved."""
    if not node.level:
        assert node.module is not None
        return node.module
    folder = path.parents[node.level - 1].relative_to(package.parent)
    return ".".join((*folder.parts, *([node.module] if node.module else [])))


def module_named(source: str, name: str, package: Path) -> str:
    """`source.name` where that is a module of the package, or else `source`."""
    below = package.parent.joinpath(*source.split("."), name)
    is_module = below.with_suffix(".py").exists() or (below / "__init__.py").exists()
    return f"{source}.{name}" if is_module else source


def inside(path: Path, places: tuple[str, ...]) -> bool:
    relative = path.relative_to(PACKAGE).as_posix()
    return any(relative == place or relative.startswith(f"{place}/") for place in places)


def upward(folder: Path, rooms: Sequence[str], prefix: str | None = None) -> list[str]:
    """Imports that run up, and rooms that have no place in the order.

    `folder` holds the rooms, and `prefix` is its dotted name where it isn't the package itself.
    """
    prefix = prefix or folder.name
    depth = prefix.count(".")
    package = folder.parents[depth - 1] if depth else folder
    found = []
    for name, path in modules(package).items():
        if not path.is_relative_to(folder):
            continue
        room = path.relative_to(folder).parts[0].removesuffix(".py")
        if room not in rooms:
            found.append(f"{name}: the room {room} isn't listed")
            continue
        for target in imports(path, package):
            if target != prefix and not target.startswith(f"{prefix}."):
                continue
            other = (*target.split("."), "__init__")[depth + 1]
            if other not in rooms or rooms.index(other) > rooms.index(room):
                found.append(f"{name} → {target}")
    return found


def cycles(package: Path) -> list[str]:
    """Circles of imports, each spelled once."""
    known = modules(package)
    graph = {name: sorted({*imports(path, package)} & {*known}) for name, path in known.items()}
    found: list[str] = []
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append(" → ".join((*trail[trail.index(name) :], name)))
        elif name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())
    return found


@pytest.mark.parametrize("library", sorted(DOORS))
def test_libraries_stay_behind_their_doors(library: str) -> None:
    for path in modules().values():
        if not inside(path, DOORS[library]):
            assert library not in {name.split(".")[0] for name in imports(path)}, path


def test_the_pure_core_is_pure() -> None:
    for path in modules().values():
        roots = {name.split(".")[0] for name in imports(path)}
        if inside(path, PURE):
            assert not roots & {"ray", "deepspeed", "mlflow"}, path
        if inside(path, TORCHLESS):
            assert "torch" not in roots, path


def test_every_place_that_is_listed_exists() -> None:
    places = {*PURE, *TORCHLESS, *(place for door in DOORS.values() for place in door)}
    assert [place for place in sorted(places) if not (PACKAGE / place).exists()] == []
    missing = [
        r for r in ROOMS if not (PACKAGE / r).is_dir() and not (PACKAGE / f"{r}.py").exists()
    ]
    assert missing == []


def test_rooms_import_downward_only() -> None:
    assert upward(PACKAGE, ROOMS) == []


@pytest.mark.parametrize("room", sorted(INNER_ROOMS))
def test_rooms_within_a_room_import_downward_only(room: str) -> None:
    assert upward(PACKAGE / room, INNER_ROOMS[room], prefix=f"raymill.{room}") == []


def test_no_import_cycles() -> None:
    assert cycles(PACKAGE) == []


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package of two rooms, `low` below `high`, and nothing wrong with it."""
    root = tmp_path / "house"
    for room in ("low", "high"):
        (root / room).mkdir(parents=True)
        (root / room / "__init__.py").touch()
    (root / "__init__.py").touch()
    (root / "low" / "ground.py").touch()
    (root / "high" / "roof.py").write_text("from house.low import ground\n")
    return root


HOUSE = ("__init__", "low", "high")


def test_a_sound_package_passes(package: Path) -> None:
    assert upward(package, HOUSE) == []
    assert cycles(package) == []


@pytest.mark.parametrize(
    "late",
    [
        "def work():\n    from house.high.roof import tile\n",
        "def work():\n    import house.high.roof\n",
        "class Work:\n    async def do(self):\n        from ..high import roof\n",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from house.high import roof\n",
    ],
)
def test_a_cycle_is_seen_through_late_imports(package: Path, late: str) -> None:
    (package / "low" / "ground.py").write_text(late)
    assert cycles(package) == ["house.high.roof → house.low.ground → house.high.roof"]
    assert upward(package, HOUSE) == ["house.low.ground → house.high.roof"]


def test_an_import_for_types_alone_is_no_arrow(package: Path) -> None:
    (package / "low" / "ground.py").write_text(
        "if TYPE_CHECKING:\n    from house.high.roof import tile\n"
    )
    assert cycles(package) == []


def test_a_module_imported_from_its_package_is_followed(package: Path) -> None:
    """A statement that names only the package may import any room: `from house import high` runs up too."""
    (package / "low" / "ground.py").write_text("from house import errors, high, version\n")
    (package / "errors.py").touch()
    found = upward(package, ("__init__", "errors", "low", "high"))
    assert found == ["house.low.ground → house.high"]


def test_a_room_that_is_not_listed_fails(package: Path) -> None:
    (package / "attic.py").touch()
    assert upward(package, HOUSE) == ["house.attic: the room attic isn't listed"]
    (package / "low" / "ground.py").write_text("import house.attic\n")
    assert "house.low.ground → house.attic" in upward(package, HOUSE)
