"""Records of a planned piece as conversations, each on its side of the held-out split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raymill.data.messages.conversation import Conversation, Problem, read_conversation
from raymill.data.messages.formats import BESIDE, COLUMNS
from raymill.data.messages.records import (
    known_columns,
    message_side,
    place_of_record,
    plain_record,
    read_told,
    without_group,
)
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.text.records import Bad
from raymill.data.text.sources import EMBEDDED, InputRange
from raymill.durable import canonical_json


@dataclass(frozen=True)
class ChatRecord:
    """A usable conversation, its split, where it stands, and the names of what nobody read beside it."""

    split: str
    conversation: Conversation
    piece: InputRange
    number: int
    unused: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """file:line or row, for a message; looked up only then."""
        return place_of_record(self.piece, self.number)


@dataclass(frozen=True)
class ChatReading:
    """Records read as conversations; what of the configuration decides how."""

    format: str | None  # None: told by each record's columns
    group_column: str | None  # None: the first question decides the side
    fraction: float
    seed: int

    def parse_text(self, text: str, piece: InputRange) -> Bad:
        """Plain text has no turns."""
        return Bad(piece.name, "plain text isn't a conversation", cause="format")

    def parse_record(
        self, record: Mapping[str, Any], piece: InputRange, number: int
    ) -> ChatRecord | Bad:
        """A conversation, or what is wrong with the record."""
        plain = plain_record(record, piece)
        found = read_conversation(plain, self.format)
        if isinstance(found, Problem):
            return Bad("", found.why, cause=found.cause, record=plain)
        side = message_side(
            piece, plain, found.first_user, self.group_column, self.fraction, self.seed
        )
        if isinstance(side, Bad):
            return side
        unused = without_group(found.unused, self.group_column)
        return ChatRecord(side, found, piece, number, unused)

    def columns(self, stored: pa.Schema, piece: InputRange) -> list[str] | Bad:
        """All that some format knows, or that JSON can hold."""
        formats = {self.format: COLUMNS[self.format]} if self.format else COLUMNS
        return known_columns(stored, formats, (*BESIDE, self.group_column or ""))

    def read(self, piece: InputRange, digest: hashlib._Hash) -> Iterator[ChatRecord | Bad]:
        """The piece's conversations in order; `digest` has seen its bytes at the end."""
        if piece.format != EMBEDDED:
            yield from read_told(piece, self, digest)
            return
        from raymill.data.demo.embedded import entries

        for number, entry in enumerate(entries(piece.name, self.fraction, self.seed)):
            digest.update(canonical_json(entry.record).encode())
            found = read_conversation(entry.record, "messages")
            assert isinstance(found, Conversation)  # the embedded corpus is well-formed
            yield ChatRecord(VALIDATION if entry.held_out else TRAIN, found, piece, number)
