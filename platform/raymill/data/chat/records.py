"""Records of a planned piece as conversations, each on its side of the held-out split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raymill.data.chat.conversation import Conversation, Problem, read_conversation
from raymill.data.chat.formats import COLUMNS
from raymill.data.records import Bad, place_of, read_records, side_of
from raymill.data.sources import BY_RECORD, Piece
from raymill.data.split import TRAIN, VALIDATION, is_held_out
from raymill.durable import canonical_json

_OTHER_COLUMNS = ("system", "input", "tools", "weight")


@dataclass(frozen=True)
class ChatRecord:
    """A usable conversation, its split, and where it stands."""

    split: str
    conversation: Conversation
    piece: Piece
    number: int

    @property
    def where(self) -> str:
        """file:line or row, for a message; looked up only then."""
        if self.piece.format == "stdlib_chat":
            return f"{self.piece.name}, conversation {self.number}"
        return place_of(self.piece, self.number)


@dataclass(frozen=True)
class ChatReading:
    """Records read as conversations; what of the configuration decides how."""

    format: str | None  # None: told by each record's columns
    group_column: str | None  # None: the first question decides the side
    fraction: float
    seed: int

    def of_text(self, text: str, piece: Piece) -> Bad:
        """Plain text has no turns."""
        return Bad(piece.name, "plain text isn't a conversation", cause="format")

    def of_record(self, record: Mapping[str, Any], piece: Piece, number: int) -> ChatRecord | Bad:
        """A conversation, or what is wrong with the record."""
        if piece.format in ("parquet", "arrow"):  # columns fill in what a record doesn't have
            record = _without_nulls(record)
        found = read_conversation(record, self.format)
        if isinstance(found, Problem):
            return Bad("", found.why, cause=found.cause, record=dict(record))
        if piece.split == BY_RECORD and self.group_column is None:
            held_out = is_held_out(found.first_user, self.fraction, self.seed)
            return ChatRecord(VALIDATION if held_out else TRAIN, found, piece, number)
        side = side_of(piece, record, self.group_column, self.fraction, self.seed)
        if isinstance(side, Bad):
            return Bad("", side.why, cause="group", record=dict(record))
        return ChatRecord(side, found, piece, number)

    def columns(self, stored: pa.Schema, piece: Piece) -> list[str] | Bad:
        """Every column that some format knows; others aren't read."""
        formats = [self.format] if self.format else list(COLUMNS)
        wanted = [column for name in formats for column in COLUMNS[name]]
        present = [
            name
            for name in dict.fromkeys((*wanted, *_OTHER_COLUMNS, self.group_column or ""))
            if name in stored.names
        ]
        if any(set(COLUMNS[name]) <= set(present) for name in formats):
            return present
        needed = "; ".join(f"{name}: {', '.join(COLUMNS[name])}" for name in formats)
        known = ", ".join(stored.names[:8])
        return Bad("", f"no format's columns (expected {needed}; has {known})", cause="format")

    def read(self, piece: Piece, digest: hashlib._Hash) -> Iterator[ChatRecord | Bad]:
        """The piece's conversations in order; `digest` has seen its bytes at the end."""
        if piece.format != "stdlib_chat":
            yield from read_records(piece, self, digest)
            return
        from raymill.data.chat.stdlib import conversations

        for number, entry in enumerate(conversations(self.fraction, self.seed)):
            digest.update(canonical_json(entry.record).encode())
            found = read_conversation(entry.record, "messages")
            assert isinstance(found, Conversation)  # the embedded corpus is well-formed
            yield ChatRecord(VALIDATION if entry.held_out else TRAIN, found, piece, number)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
