"""Nulls that nobody wrote: where JSON was written from a table, each of its objects has the keys of all others.

Among the tools that a record gives, and the calls of them, they are known by the tools' schemas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["as_defined", "without_padding"]

# What a schema holds as a value, so that a null is one.
_VALUES = ("default", "const", "enum", "example", "examples")


def without_padding(schema: Any, *, named: bool = False) -> Any:
    """A tool, or a part of its schema, without keys that are null, which no schema has. `named`: the keys are
    names that the tool gave, as of its arguments."""
    if isinstance(schema, list):
        return [without_padding(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: item
        if key in _VALUES and not named
        else without_padding(item, named=key == "properties" and not named)
        for key, item in schema.items()
        if item is not None or (key in _VALUES and not named)
    }


def as_defined(
    messages: Sequence[dict[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> tuple[dict[str, Any], ...]:
    """Messages whose calls hold no null for what the called tool doesn't have."""
    functions = [tool.get("function", tool) for tool in tools or ()]
    schemas = {
        str(function.get("name")): function.get("parameters")
        for function in functions
        if isinstance(function, Mapping)
    }
    return tuple(
        {**message, "tool_calls": [_called(call, schemas) for call in message["tool_calls"]]}
        if "tool_calls" in message
        else message
        for message in messages
    )


def _called(call: Mapping[str, Any], schemas: Mapping[str, object]) -> dict[str, Any]:
    function = call["function"]
    arguments = _argument(function["arguments"], schemas.get(function["name"]))
    return {**call, "function": {**function, "arguments": arguments}}


def _argument(value: Any, schema: object) -> Any:
    if not isinstance(schema, Mapping):
        return value
    if isinstance(value, list):
        return [_argument(item, schema.get("items")) for item in value]
    known = schema.get("properties")
    if (
        not isinstance(value, Mapping)
        or not isinstance(known, Mapping)
        or schema.get("additionalProperties")
    ):
        return value
    return {
        key: _argument(item, known.get(key))
        for key, item in value.items()
        if item is not None or key in known
    }
