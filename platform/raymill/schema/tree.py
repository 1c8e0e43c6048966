"""Configuration objects back to plain trees: for storing, comparing and naming runs.

Trees are what gets written, so they hold no secrets; digests are of the configuration as it is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from raymill.redaction import redacted_names, redacted_value


def to_tree(job: Any) -> dict[str, Any]:
    """A configuration object as a plain tree, keys as the user types them (`from`, not `from_`); redacted."""
    tree: dict[str, Any] = without_secrets(_plain(job))
    return tree


def without_secrets(value: Any) -> Any:
    """A tree's keys and values, redacted."""
    if isinstance(value, dict):
        shown = redacted_names(value)
        return {shown[key]: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_secrets(item) for item in value]
    return redacted_value(value) if isinstance(value, str) else value


def _plain(value: Any) -> Any:
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


def flatten(job: Any) -> dict[str, Any]:
    """Dotted key → scalar, list or null, redacted; an empty group stays visible as `{}`."""
    return _flat(to_tree(job))


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}

    def visit(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                visit(f"{prefix}.{key}" if prefix else key, item)
        else:
            flat[prefix] = value

    visit("", tree)
    return flat


def digest(job: Any, ignore: Callable[[str], bool] = lambda key: False) -> str:
    """sha256 of the flattened configuration, without the keys that `ignore` admits."""
    kept = {key: value for key, value in _flat(_plain(job)).items() if not ignore(key)}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
