"""Records of a planned piece as comparisons, each on its side of the held-out split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raymill.data.messages.formats import BESIDE
from raymill.data.messages.problems import Problem
from raymill.data.messages.records import (
    known_columns,
    message_side,
    plain_record,
    read_told,
    without_group,
)
from raymill.data.preference.comparison import Comparison, read_comparison
from raymill.data.preference.formats import ASKED, COLUMNS
from raymill.data.text.raw_streams import record_location
from raymill.data.text.records import Bad
from raymill.data.text.sources import InputRange

_OTHER_COLUMNS = (*ASKED, *BESIDE, "margin", "tie", "annotator")


@dataclass(frozen=True)
class PreferenceRecord:
    """A usable comparison, its split, the record that it was, where that stands, and the names of what nobody
    read in it."""

    split: str
    comparison: Comparison
    record: dict[str, Any]
    piece: InputRange
    number: int
    unused: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """file:line or row, for a message; looked up only then."""
        return record_location(self.piece, self.number)


@dataclass(frozen=True)
class PreferenceReading:
    """Records read as comparisons; what of the configuration decides how."""

    format: str | None  # None: told by each record's columns
    group_column: str | None  # None: the prompt's first question decides the side
    fraction: float
    seed: int

    def parse_text(self, text: str, piece: InputRange) -> Bad:
        """Plain text compares nothing."""
        return Bad(piece.name, "plain text isn't a comparison", cause="format")

    def parse_record(
        self, record: Mapping[str, Any], piece: InputRange, number: int
    ) -> PreferenceRecord | Bad:
        """A comparison, or what is wrong with the record."""
        plain = plain_record(record, piece)
        found = read_comparison(plain, self.format)
        if isinstance(found, Problem):
            return Bad("", found.why, cause=found.cause, record=plain)
        side = message_side(
            piece, plain, found.first_user, self.group_column, self.fraction, self.seed
        )
        if isinstance(side, Bad):
            return side
        unused = without_group(found.unused, self.group_column)
        return PreferenceRecord(side, found, plain, piece, number, unused)

    def columns(self, stored: pa.Schema, piece: InputRange) -> list[str] | Bad:
        """All that some format knows, or that JSON can hold."""
        formats = {self.format: COLUMNS[self.format]} if self.format else COLUMNS
        return known_columns(stored, formats, (*_OTHER_COLUMNS, self.group_column or ""))

    def read(self, piece: InputRange, digest: hashlib._Hash) -> Iterator[PreferenceRecord | Bad]:
        """The piece's comparisons in order; `digest` has seen its bytes at the end."""
        return read_told(piece, self, digest)
