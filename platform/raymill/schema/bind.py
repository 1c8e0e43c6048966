"""Binding of a plain tree to frozen dataclasses; it collects every problem instead of stopping at the first."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Literal, TypeVar, Union

from raymill.schema.renamed import RENAMED

T = TypeVar("T")

_SCALARS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


@cache
def field_types(cls: type) -> dict[str, object]:
    """Return the types of a configuration dataclass by key, as users type it."""
    hints = typing.get_type_hints(cls)
    return {field.name.rstrip("_"): hints[field.name] for field in _fields(cls)}


def known_keys(cls: type, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the dotted key and the type of every leaf of a configuration dataclass."""
    for key, hint in field_types(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from known_keys(typing.cast(type, hint), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", hint


def bind(cls: type[T], tree: Mapping[str, object], problems: list[str]) -> T | None:
    """Build `cls` from `tree`. Append what doesn't fit to `problems`, and return None then."""
    own_problems: list[str] = []
    all_keys = [key for key, _ in known_keys(cls)]
    result = _bind_dataclass(cls, tree, "", all_keys, own_problems)
    problems.extend(own_problems)
    return result


def bind_section(
    cls: type[T], tree: Mapping[str, object], key: str, problems: list[str]
) -> T | None:
    """Build the section at a dotted key, as `bind` builds a whole job.

    A constructor may refuse values by a ValueError, whose text becomes a problem.
    """
    own_problems: list[str] = []
    all_keys = [f"{key}.{name}" for name in field_types(typing.cast(type, cls))]
    result = None
    try:
        result = _bind_dataclass(cls, tree, f"{key}.", all_keys, own_problems)
    except ValueError as error:
        own_problems.append(f"{key}: {error}")
    problems.extend(own_problems)
    return result


def unknown_key(key: str, choices: list[str]) -> str:
    """Refuse a key that doesn't exist: name the key that took its place, or else the nearest."""
    if RENAMED.get(key) in choices:
        return f"{key}: renamed to {RENAMED[key]}"
    return f"{key}: there is no such key{nearest_key(key, choices)}"


def nearest(word: str, choices: list[str]) -> str:
    """Return `; did you mean …?`, or nothing when no choice is near."""
    matches = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


def nearest_key(key: str, choices: list[str]) -> str:
    """Return the same for dotted keys: the right leaf under the wrong group is near too, and in a group that
    exists, the nearest of its keys."""
    group, _, leaf = key.rpartition(".")
    leaves = {choice: choice.rpartition(".")[2] for choice in choices}
    same_leaf = [choice for choice in choices if leaves[choice] == leaf]
    if len(same_leaf) == 1:
        return f"; did you mean {same_leaf[0]}?"
    in_group = {leaves[choice]: choice for choice in choices if choice.startswith(f"{group}.")}
    if not (group and in_group):
        return nearest(key, choices)
    everywhere = {leaves[choice]: choice for choice in choices}
    # The last, lowest cutoff finds what is left of a shortened key, as in lr.
    for keys, cutoff in ((in_group, 0.6), (everywhere, 0.8), (in_group, 0.25)):
        matches = difflib.get_close_matches(leaf, keys, n=1, cutoff=cutoff)
        if matches:
            return f"; did you mean {keys[matches[0]]}?"
    return f"; {group} has {', '.join(in_group)}"


def _fields(cls: type) -> tuple[dataclasses.Field[object], ...]:
    return dataclasses.fields(typing.cast(Any, cls))


def _bind_dataclass(
    cls: type[T], tree: object, prefix: str, all_keys: list[str], problems: list[str]
) -> T | None:
    if not isinstance(tree, Mapping):
        problems.append(f"{prefix.rstrip('.')}={tree!r}: expected a group of keys")
        return None
    hints = field_types(typing.cast(type, cls))
    values: dict[str, object] = {}
    for key in tree:
        if key not in hints:
            problems.append(unknown_key(f"{prefix}{key}", all_keys))
    for field in _fields(cls):
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
        elif field.default is dataclasses.MISSING:
            problems.append(f"{dotted}: a value is required ({describe(hints[key])})")
    # A section with a problem may lack a value that its constructor needs.
    if problems:
        return None
    return cls(**values)


def convert(hint: object, value: object, key: str, problems: list[str]) -> Any:
    """Return `value` as the type `hint`, or append a problem."""
    fits, converted = _convert(hint, value)
    if not fits:
        problems.append(f"{key}={value!r}: expected {describe(hint)}")
    return converted


def _convert(hint: object, value: object) -> tuple[bool, object]:
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        for option in typing.get_args(hint):
            fits, converted = _convert(option, value)
            if fits:
                return True, converted
        return False, None
    if hint is object:
        return True, value
    if hint is type(None):
        return value is None, None
    if origin is Literal:
        allowed = typing.get_args(hint)
        # 1 equals True, so the types must be the same too.
        match = next((a for a in allowed if a == value and type(a) is type(value)), None)
        return match is not None, match
    if origin is tuple:
        # A single text stands for a list of one, as in data.path=texts/.
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            return False, None
        pairs = [_convert(typing.get_args(hint)[0], item) for item in items]
        return all(fits for fits, _ in pairs), tuple(item for _, item in pairs)
    if origin is dict:
        if not isinstance(value, Mapping):
            return False, None
        pairs = [_convert(typing.get_args(hint)[1], item) for item in value.values()]
        keys = [str(key) for key in value]
        return all(fits for fits, _ in pairs), dict(zip(keys, (i for _, i in pairs), strict=True))
    return _convert_scalar(hint, value)


def _convert_scalar(hint: object, value: object) -> tuple[bool, object]:
    if hint is bool:
        return isinstance(value, bool), value
    # Python counts True as 1, but a user who types true for a number made a mistake.
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return True, float(value)
        # YAML 1.1 reads 3e-4 as text.
        if isinstance(value, str):
            try:
                return True, float(value)
            except ValueError:
                return False, None
        return False, None
    return isinstance(value, str), value


def describe(hint: object) -> str:
    """Return a type in plain words."""
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
        inner = "0.5" if typing.get_origin(arguments[1]) is not dict else "{name: 0.5}"
        return f"a mapping such as {{name: {inner}}}"
    if hint is object:
        return "a value"
    return _SCALARS[hint]
