"""Refusal of Parquet files whose stored Arrow schema would run the code of an extension type."""

from __future__ import annotations

import base64
from pathlib import Path

import pyarrow as pa

from raymill.errors import DataError


def refuse_extension_types(path: Path, footer: bytes) -> None:
    """Raise DataError if the stored Arrow schema names an extension type other than Arrow's own JSON.

    The raw footer is searched, because opening the file would already run the code with which a
    registered extension type is deserialized (CVE-2026-41486 in Ray Data below 2.55).
    """
    position = footer.find(b"ARROW:schema")
    while position >= 0:
        start = position + len(b"ARROW:schema")
        # Thrift compact protocol: field header 0x18 (binary, next field), varint length, then
        # base64.
        if footer[start : start + 1] != b"\x18":
            raise DataError(f"{path} has a footer whose Arrow schema can't be inspected.")
        start, length, shift = start + 1, 0, 0
        while start < len(footer):
            byte = footer[start]
            length |= (byte & 0x7F) << shift
            start, shift = start + 1, shift + 7
            if byte < 0x80:
                break
        try:
            stored = base64.b64decode(footer[start : start + length], validate=True)
        except ValueError:
            raise DataError(f"{path} has a footer whose Arrow schema can't be inspected.") from None
        if b"ARROW:extension" in stored and not _has_only_json(stored):
            raise DataError(
                f"{path} holds an Arrow extension type; Raymill reads plain columns only: "
                "rewrite the file without it."
            )
        position = footer.find(b"ARROW:schema", start + length)


def _has_only_json(stored: bytes) -> bool:
    """Tell whether every extension type of a stored schema is `arrow.json`, which is Arrow's own code."""
    # Under another name the metadata isn't recognized, so reading the schema runs no code of a type.
    renamed = stored.replace(b"ARROW:extension", b"ARROW:xxtension")
    try:
        fields = [*pa.ipc.read_schema(pa.py_buffer(renamed))]
    except (pa.ArrowException, OSError):
        return False
    found = 0
    while fields:
        field = fields.pop()
        name = (field.metadata or {}).get(b"ARROW:xxtension:name")
        if name not in (None, b"arrow.json"):
            return False
        found += name is not None
        fields += (field.type.field(index) for index in range(field.type.num_fields))
    # A field that names two types would show only one of them.
    return found == stored.count(b"ARROW:extension:name")
