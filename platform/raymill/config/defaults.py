"""Defaults of a job's keys and their explanations, as the files of `conf/` state them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

CONF = Path(__file__).resolve().parents[3] / "conf"
# Files that others include; a user can't choose them.
SHARED = "shared"
_SELF = "_self_"
_COMMENT = re.compile(r":?\s+# (.*)")


@dataclass(frozen=True)
class Statement:
    """Value of a key in one file of `conf/`, and the comment behind it."""

    file: str
    key: str
    value: object
    comment: str | None


@dataclass(frozen=True)
class _File:
    """A file of `conf/`: its own statements, and what it includes before and after them."""

    is_global: bool
    included: tuple[str | dict[str, str | None], ...]
    statements: tuple[Statement, ...]


def statements(job: str, chosen: Mapping[str, str] | None = None) -> dict[str, list[Statement]]:
    """Return the statements about each key of `conf/<job>.yaml` with its groups, in the order in which Hydra
    merges them: the last one holds. `chosen` replaces the choices of groups."""
    by_key: dict[str, list[Statement]] = {}
    for key, statement in _statements(CONF / f"{job}.yaml", "", chosen or {}):
        by_key.setdefault(key, []).append(statement)
    return by_key


def explanations(job: str) -> dict[str, str]:
    """Return the explanation of each key that has one: the comment nearest to the value that holds."""
    return {
        key: comments[-1]
        for key, stated in statements(job).items()
        if (comments := [statement.comment for statement in stated if statement.comment])
    }


def _statements(
    path: Path, package: str, chosen: Mapping[str, str]
) -> Iterator[tuple[str, Statement]]:
    file = _read(path)
    prefix = f"{package}." if package and not file.is_global else ""
    for entry in file.included:
        if entry == _SELF:
            yield from ((f"{prefix}{statement.key}", statement) for statement in file.statements)
        elif isinstance(entry, str):
            name = entry.partition("@")[0]
            folder = CONF if name.startswith("/") else path.parent
            yield from _statements(folder / f"{name.lstrip('/')}.yaml", prefix.rstrip("."), chosen)
        else:
            [(group, default)] = entry.items()
            choice = chosen.get(group, default)
            if choice is not None:
                package = group.replace("/", ".")
                yield from _statements(CONF / group / f"{choice}.yaml", package, chosen)


@cache
def _read(path: Path) -> _File:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    name = str(path.relative_to(CONF))

    def visit(key: str, node: yaml.Node) -> Iterator[Statement]:
        if isinstance(node, yaml.MappingNode) and not node.flow_style:
            for inner, value in node.value:
                if key or inner.value != "defaults":
                    yield from visit(f"{key}.{inner.value}" if key else inner.value, value)
            return
        end = node.end_mark
        behind = lines[end.line][end.column :] if end.line < len(lines) else ""
        comment = _COMMENT.fullmatch(behind)
        value = yaml.safe_load(yaml.serialize(node))
        yield Statement(name, key, value, comment and comment[1])

    root = yaml.compose(text, yaml.SafeLoader)
    assert root is not None, f"{path} states nothing"
    included = yaml.safe_load(text).get("defaults", [])
    return _File(
        is_global=text.startswith("# @package _global_"),
        included=(*included, *([] if _SELF in included else [_SELF])),
        statements=tuple(visit("", root)),
    )
