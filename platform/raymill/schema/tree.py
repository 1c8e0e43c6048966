"""Plain trees of configuration objects, to store, compare and name runs.

Stored trees hold no secrets; digests are computed over the configuration as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from raymill.redaction import redacted_names, redacted_value
from raymill.schema.identity import CAME_LATER
from raymill.schema.renamed import first_names

# Keys and values of a configuration; a group of keys is a tree itself.
Tree = dict[str, Any]


def to_tree(job: object) -> Tree:
    """Return a configuration object as a redacted tree with the keys that users type (`from`, not `from_`)."""
    tree: Tree = without_secrets(_plain(job))
    return tree


def without_secrets(value: Any) -> Any:
    """Return a tree with its keys and values redacted."""
    if isinstance(value, dict):
        shown = redacted_names(value)
        return {shown[key]: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return redacted_value(value) if isinstance(value, str) else value


def flatten(job: object) -> Tree:
    """Return scalars, lists and nulls by dotted key, redacted; an empty group stays visible as `{}`."""
    return _flat(to_tree(job))


def digest(job: object, ignore: Callable[[str], bool] = lambda key: False) -> str:
    """Return the sha256 of the flattened configuration, without the keys that `ignore` selects."""
    kept = {
        key: value
        for key, value in _flat(_plain(job)).items()
        if not ignore(key) and not (key in CAME_LATER and value == CAME_LATER[key])
    }
    text = json.dumps(first_names(kept), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            field.name.rstrip("_"): _plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _flat(tree: Tree) -> Tree:
    flat: Tree = {}

    def visit(prefix: str, value: object) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                visit(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = value

    visit("", tree)
    return flat
