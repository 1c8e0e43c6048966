"""What reading records of messages has in common, whatever is made of them: columns, nulls, sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from raymill.data.places import place_of
from raymill.data.records import Bad, side_of
from raymill.data.sources import BY_RECORD, EMBEDDED, Piece
from raymill.data.split import TRAIN, VALIDATION, is_held_out


def plain_record(record: Mapping[str, Any], piece: Piece) -> dict[str, Any]:
    """A record without the nulls by which a table's columns fill in what it doesn't have."""
    if piece.format not in ("parquet", "arrow"):
        return dict(record)
    return {name: _without_nulls(item) for name, item in record.items() if item is not None}


def message_side(
    piece: Piece,
    record: Mapping[str, Any],
    first_user: str,
    group_column: str | None,
    fraction: float,
    seed: int,
) -> str | Bad:
    """The split that a record falls on: its file's, or by the group column, or by the first question.

    A Bad has no place and is of the cause `group`.
    """
    if piece.split == BY_RECORD and group_column is None:
        return VALIDATION if is_held_out(first_user, fraction, seed) else TRAIN
    side = side_of(piece, record, group_column, fraction, seed)
    return Bad("", side.why, cause="group", record=dict(record)) if isinstance(side, Bad) else side


def place_of_record(piece: Piece, number: int) -> str:
    """file:line or row, for a message; of embedded conversations, their number."""
    if piece.format == EMBEDDED:
        return f"{piece.name}, conversation {number}"
    return place_of(piece, number)


def known_columns(
    stored: pa.Schema, formats: Mapping[str, Sequence[Sequence[str]]], others: Sequence[str]
) -> list[str] | Bad:
    """A table's columns that are worth reading: all that some format or `others` knows.

    `formats`: name → the sets of columns of which a format needs one whole. A table that has none of
    them is Bad, of the cause `format`.
    """
    wanted = [column for ways in formats.values() for way in ways for column in way]
    present = [name for name in dict.fromkeys((*wanted, *others)) if name in stored.names]
    if any(set(way) <= set(present) for ways in formats.values() for way in ways):
        return present
    needed = "; ".join(
        f"{name}: {' or '.join(', '.join(way) for way in ways)}" for name, ways in formats.items()
    )
    known = ", ".join(stored.names[:8])
    return Bad("", f"no format's columns (expected {needed}; has {known})", cause="format")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
