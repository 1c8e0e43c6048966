"""A plain tree → frozen dataclasses, collecting every problem instead of stopping at the first."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


@cache
def field_types(cls: Any) -> dict[str, Any]:
    """Key, as the user types it → type, of a configuration dataclass."""
    hints = typing.get_type_hints(cls)
    return {field.name.rstrip("_"): hints[field.name] for field in dataclasses.fields(cls)}


def known_keys(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, type) of every leaf of a configuration dataclass."""
    for key, hint in field_types(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from known_keys(typing.cast(type, hint), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", hint


def bind(cls: type[T], tree: Mapping[str, Any], problems: list[str]) -> T | None:
    """Build `cls` from `tree`; what doesn't fit is appended to `problems`, and then None is returned."""
    found: list[str] = []
    all_keys = [key for key, _ in known_keys(cls)]
    result = _bind_dataclass(cls, tree, "", all_keys, found)
    problems.extend(found)
    return result


def nearest(word: str, choices: list[str]) -> str:
    """`; did you mean …?`, or nothing when no choice is near."""
    found = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def nearest_key(key: str, choices: list[str]) -> str:
    """Like `nearest` for dotted keys: the right leaf under the wrong group is near too, and in a group that
    exists, the nearest of its keys."""
    group, _, leaf = key.rpartition(".")
    leaves = {choice: choice.rpartition(".")[2] for choice in choices}
    same_leaf = [choice for choice in choices if leaves[choice] == leaf]
    if len(same_leaf) == 1:
        return f"; did you mean {same_leaf[0]}?"
    own = {leaves[choice]: choice for choice in choices if choice.startswith(f"{group}.")}
    if not (group and own):
        return nearest(key, choices)
    everywhere = {leaves[choice]: choice for choice in choices}
    # Last, what is left of a key that was shortened, as in lr.
    for keys, cutoff in ((own, 0.6), (everywhere, 0.8), (own, 0.25)):
        found = difflib.get_close_matches(leaf, keys, n=1, cutoff=cutoff)
        if found:
            return f"; did you mean {keys[found[0]]}?"
    return f"; {group} has {', '.join(own)}"


def _bind_dataclass(
    cls: type[T], tree: Any, prefix: str, all_keys: list[str], problems: list[str]
) -> T | None:
    if not isinstance(tree, Mapping):
        problems.append(f"{prefix.rstrip('.')}={tree!r}: expected a group of keys")
        return None
    hints = field_types(typing.cast(Any, cls))
    values: dict[str, Any] = {}
    for key in tree:
        if key not in hints:
            dotted = f"{prefix}{key}"
            problems.append(f"{dotted}: there is no such key{nearest_key(dotted, all_keys)}")
    for field in dataclasses.fields(typing.cast(Any, cls)):
        key = field.name.rstrip("_")
        dotted = f"{prefix}{key}"
        if key in tree:
            hint = hints[key]
            if dataclasses.is_dataclass(hint):
                nested = typing.cast(type, hint)
                values[field.name] = _bind_dataclass(
                    nested, tree[key], f"{dotted}.", all_keys, problems
                )
            else:
                values[field.name] = convert(hint, tree[key], dotted, problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{dotted}: a value is required ({describe(hints[key])})")
    if problems:
        return None
    return cls(**values)


def convert(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
    """`value` as the type `hint` asks, or a problem."""
    ok, converted = _convert(hint, value)
    if not ok:
        problems.append(f"{key}={value!r}: expected {describe(hint)}")
    return converted


def _convert(hint: Any, value: Any) -> tuple[bool, Any]:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        for option in typing.get_args(hint):
            ok, converted = _convert(option, value)
            if ok:
                return True, converted
        return False, None
    if hint is type(None):
        return value is None, None
    if origin is Literal:
        allowed = typing.get_args(hint)
        found = next((a for a in allowed if a == value and type(a) is type(value)), None)
        return found is not None, found
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            return False, None
        pairs = [_convert(typing.get_args(hint)[0], item) for item in items]
        return all(ok for ok, _ in pairs), tuple(item for _, item in pairs)
    if origin is dict:
        if not isinstance(value, Mapping):
            return False, None
        pairs = [_convert(typing.get_args(hint)[1], item) for item in value.values()]
        keys = [str(key) for key in value]
        return all(ok for ok, _ in pairs), dict(zip(keys, (i for _, i in pairs), strict=True))
    return _convert_scalar(hint, value)


def _convert_scalar(hint: Any, value: Any) -> tuple[bool, Any]:
    if hint is bool:
        return isinstance(value, bool), value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return True, float(value)
        if isinstance(value, str):  # YAML 1.1 reads 3e-4 as text
            try:
                return True, float(value)
            except ValueError:
                return False, None
        return False, None
    return isinstance(value, str), value


def describe(hint: Any) -> str:
    """A type in a user's words."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(option) for option in arguments)
    if hint is type(None):
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        return f"a list of {describe(arguments[0])}s".replace("a list of a ", "a list of ")
    if origin is dict:
        return "a mapping such as {name: 0.5}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]
