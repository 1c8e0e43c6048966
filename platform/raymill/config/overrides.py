"""Overrides of a command line, divided into choices of groups (for Hydra) and values of keys (for us).

Entries of a mapping are set by name, as in `data.mixture.wiki=0.7`; where they have parameters, those are
set by name too, as in `data.cleaning.gopher_quality.min_words=20`, and `~data.cleaning.c4` takes an entry
away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args, get_origin

from raymill.config.values import UNREADABLE, read_value
from raymill.schema.bind import nearest, unknown_key
from raymill.schema.tree import Tree

_CONSTRUCTOR_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
# Value of an entry that is taken away.
_REMOVED = object()


@dataclass(frozen=True)
class Setting:
    """Value of a key, as the user spelled it and as a path into the tree."""

    key: str
    path: tuple[str, ...]
    value: object


@dataclass
class Overrides:
    """Overrides in their order: `chosen` for Hydra, `settings` for the tree that it composes."""

    chosen: list[str] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)


def read_overrides(
    texts: Sequence[str],
    types: Mapping[str, object],
    available: Mapping[str, Sequence[str]],
    problems: list[str],
) -> Overrides:
    """Read overrides of a job whose keys have `types`; `available` are its groups with their choices."""
    # The choices of a group only mean something to a job that has its section.
    sections = {"experiment", *types}
    for key in types:
        parts = key.split(".")
        sections |= {".".join(parts[:length]) for length in range(1, len(parts))}
    result = Overrides()
    for text in texts:
        key, equals, raw = text.partition("=")
        mapping = mapping_of(key.removeprefix("~"), types)
        if key.startswith("~") and not equals and mapping is not None:
            name = key.removeprefix("~")
            result.settings.append(Setting(text, _path(name, mapping, types), _REMOVED))
            continue
        # Names of entries may contain "=", as addresses do.
        if mapping is not None:
            key, equals, raw = text.rpartition("=")
        refusal = _refusal(mapping or key, equals, text, available)
        if refusal:
            problems.append(refusal)
        elif key in available and key.replace("/", ".") in sections:
            result.chosen += _choice(key, raw, available[key], problems)
        elif mapping is None and key not in types:
            problems.append(unknown_key(key, [*types, *available]))
        else:
            path = (*key.split("."),) if mapping is None else _path(key, mapping, types)
            value = read_value(key, raw, _hint(key, mapping, types, path), problems)
            if value is not UNREADABLE:
                result.settings.append(Setting(key, path, value))
    return result


def mapping_of(key: str, types: Mapping[str, object]) -> str | None:
    """Return the mapping in which a key names an entry; the rest of the key, dots included, is the entry's
    name."""
    for name, hint in types.items():
        if get_origin(hint) is dict and key.startswith(f"{name}."):
            return name
    return None


def apply(setting: Setting, tree: Tree, problems: list[str]) -> None:
    """Set a value in the tree, or take an entry away."""
    *parents, leaf = setting.path
    node = tree
    for name in parents:
        inner = node.setdefault(name, {})
        if not isinstance(inner, dict):
            problems.append(f"{'.'.join(setting.path)}: {name} isn't a group of keys")
            return
        node = inner
    if setting.value is not _REMOVED:
        node[leaf] = setting.value
    elif node.pop(leaf, _REMOVED) is _REMOVED:
        known = ", ".join(node) or "nothing"
        problems.append(f"{setting.key}: there is no such entry; {'.'.join(parents)} has {known}")


def _path(key: str, mapping: str, types: Mapping[str, object]) -> tuple[str, ...]:
    """Split the key of an entry; its name is one part, and so is that of its parameter."""
    entry = key.removeprefix(f"{mapping}.")
    parts = entry.split(".", 1) if _has_parameters(types[mapping]) else [entry]
    return (*mapping.split("."), *parts)


def _hint(
    key: str, mapping: str | None, types: Mapping[str, object], path: Sequence[str]
) -> object:
    if mapping is None:
        return types.get(key)
    is_parameter = len(path) == len(mapping.split(".")) + 2
    return object if is_parameter else get_args(types[mapping])[1]


def _has_parameters(hint: object) -> bool:
    """Tell whether the entries of a mapping have parameters of any type, which their owners check."""
    inner = get_args(hint)[1]
    return get_origin(inner) is dict and get_args(inner)[1] is object


def _choice(group: str, raw: str, choices: Sequence[str], problems: list[str]) -> list[str]:
    # Presets within a section add up, as in data/cleaning=[fineweb,pii].
    nested = "/" in group
    names = raw[1:-1].split(",") if nested and raw.startswith("[") and raw.endswith("]") else [raw]
    for name in (name.strip() for name in names):
        if name not in choices and name != "null":
            problems.append(
                f"{group}={raw}: {group} is one of {', '.join(choices)}{nearest(name, [*choices])}"
            )
            return []
    if nested and raw == "null":
        return []
    return [f"{group}={raw}"]


def _refusal(
    key: str, equals: str, text: str, available: Mapping[str, Sequence[str]]
) -> str | None:
    if not equals:
        hint = "; the form is key=value" if not text.startswith("-") else "; try --help"
        return f"{text!r} isn't an override{hint}"
    if key.lstrip("+~").split(".")[0].split("/")[0].split("@")[0] == "hydra":
        return f"{key}: Hydra's own settings can't be changed from here"
    if any(part in _CONSTRUCTOR_KEYS for part in key.lstrip("+~").split(".")) or any(
        f"{name}:" in text or f"{name}=" in text for name in _CONSTRUCTOR_KEYS
    ):
        return f"{key}: configuration can't name objects to construct"
    if key[:1] in "+~":
        return (
            f"{key}: keys can't be added or deleted; every key that exists can be set by key=value"
        )
    if key not in available and ("/" in key or "@" in key):
        return f"{key}: groups can't be moved"
    return None
