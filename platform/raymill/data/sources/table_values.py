"""Convert values of a table's cells to JSON values, whichever way Arrow stores them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from raymill.data.sources.json_values import parse_json

__all__ = ["holds_json", "plain_value"]


def holds_json(stored: pa.DataType) -> bool:
    """Return whether a column's values are JSON: no times, bytes, decimals or maps."""
    if isinstance(stored, pa.DictionaryType) or _is_list(stored):
        return holds_json(stored.value_type)
    if isinstance(stored, pa.StructType):
        return all(holds_json(field.type) for field in stored)
    kinds = pa.types
    text = kinds.is_string(stored) or kinds.is_large_string(stored) or kinds.is_string_view(stored)
    number = kinds.is_integer(stored) or kinds.is_floating(stored)
    other = kinds.is_boolean(stored) or kinds.is_null(stored) or isinstance(stored, pa.JsonType)
    return bool(text or number or other)


def plain_value(value: Any, stored: pa.DataType, what: str) -> Any:
    """Convert a value as Arrow returns it to a JSON value.

    Nulls by which an object has all fields of its column are dropped, and texts that are stored as
    JSON are parsed; `what` names the value in an error.

    Raises:
        UnusableRecordError: such a text isn't JSON.
    """
    if value is None:
        return None
    if isinstance(stored, pa.JsonType):
        return parse_json(value, what)
    if isinstance(stored, pa.DictionaryType):
        return plain_value(value, stored.value_type, what)
    if _is_list(stored):
        return [plain_value(item, stored.value_type, what) for item in value]
    if isinstance(stored, pa.StructType):
        items = ((field, value[field.name]) for field in stored)
        return {
            field.name: plain_value(item, field.type, what)
            for field, item in items
            if item is not None
        }
    return value


def _is_list(stored: pa.DataType) -> bool:
    lists = pa.ListType | pa.LargeListType | pa.FixedSizeListType
    return isinstance(stored, lists | pa.ListViewType | pa.LargeListViewType)
