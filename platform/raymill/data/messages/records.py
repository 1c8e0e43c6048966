"""What reading records of messages has in common, whatever is made of them: columns, nulls, sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pyarrow as pa

from raymill.data.messages.keys import COLUMN, MEDIA, unread_names
from raymill.data.store.split import TRAIN, VALIDATION, is_held_out
from raymill.data.text.raw_streams import record_location
from raymill.data.text.records import Bad, RecordParser, read_records, record_split
from raymill.data.text.sources import BY_RECORD, EMBEDDED, InputRange
from raymill.data.text.table_values import holds_json

LISTED = 3  # sets of columns of a format, in a message


class MessageRecord(Protocol):
    """A record of messages as it is read; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of what the record held and nobody read."""
        ...


R = TypeVar("R", bound=MessageRecord)


class _Told(Generic[R]):
    """A reading of one piece that also tells which of a table's columns it doesn't read."""

    def __init__(self, meaning: RecordParser) -> None:
        self._meaning = meaning
        self._unread: tuple[str, ...] = ()

    def parse_text(self, text: str, piece: InputRange) -> R | Bad:
        found: R | Bad = self._meaning.parse_text(text, piece)
        return found

    def parse_record(self, record: Mapping[str, Any], piece: InputRange, number: int) -> R | Bad:
        found: R | Bad = self._meaning.parse_record(record, piece, number)
        if isinstance(found, Bad) or not self._unread:
            return found
        return replace(found, unused=(*found.unused, *self._unread))

    def columns(self, stored: pa.Schema, piece: InputRange) -> list[str] | Bad:
        wanted = self._meaning.columns(stored, piece)
        if not isinstance(wanted, Bad):
            self._unread = unread_names(stored.names, wanted)
        return wanted


def read_told(piece: InputRange, meaning: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
    """As `read_records`; the columns of a table that aren't read are among the records' `unused`."""
    return read_records(piece, _Told(meaning), digest)


def without_group(unused: tuple[str, ...], group_column: str | None) -> tuple[str, ...]:
    """The names of what nobody read, without the column that decided the side."""
    return tuple(name for name in unused if name != f"{COLUMN} {group_column!r}")


def plain_record(record: Mapping[str, Any], piece: InputRange) -> dict[str, Any]:
    """A record without the columns that a table has for other rows' sake."""
    if piece.format not in ("parquet", "arrow"):
        return dict(record)
    return {name: item for name, item in record.items() if item is not None}


def message_side(
    piece: InputRange,
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
    side = record_split(piece, record, group_column, fraction, seed)
    return Bad("", side.why, cause="group", record=dict(record)) if isinstance(side, Bad) else side


def place_of_record(piece: InputRange, number: int) -> str:
    """file:line or row, for a message; of embedded conversations, their number."""
    if piece.format == EMBEDDED:
        return f"{piece.name}, conversation {number}"
    return record_location(piece, number)


def known_columns(
    stored: pa.Schema, formats: Mapping[str, Sequence[Sequence[str]]], others: Sequence[str]
) -> list[str] | Bad:
    """A table's columns that are read: what some format or `others` knows, and all else that JSON can hold,
    or that mustn't be there.

    `formats`: name → the sets of columns of which a format needs one whole. A table that has none of
    them is Bad, of the cause `format`.
    """
    if any(set(way) <= set(stored.names) for ways in formats.values() for way in ways):
        wanted = [column for ways in formats.values() for way in ways for column in way]
        rest = [name for name in stored.names if holds_json(stored.field(name).type)]
        # Media are read, though JSON can't hold them, since records that have any are refused.
        every = dict.fromkeys((*wanted, *others, *rest, *MEDIA))
        return [name for name in every if name in stored.names]
    needed = "; ".join(
        f"{name}: {' or '.join(', '.join(way) for way in ways[:LISTED])}"
        for name, ways in formats.items()
    )
    known = ", ".join(stored.names[:8])
    return Bad("", f"no format's columns (expected {needed}; has {known})", cause="format")
