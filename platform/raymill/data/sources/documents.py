"""Documents: records that hold one text each, and the split that each of them belongs to."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from raymill.data.sources.inputs import BY_RECORD, InputRange
from raymill.data.sources.records import Bad, Record, record_split


@dataclass(frozen=True)
class Document:
    """Text and its split; `number` counts the lines or rows of its input range, where it has
    some."""

    split: str
    text: str
    number: int | None = None


@dataclass(frozen=True)
class DocumentParser:
    """Parser of records into documents, with the configuration that determines how."""

    text_column: str
    group_column: str | None
    fraction: float
    seed: int

    def parse_text(self, text: str, span: InputRange) -> Document:
        """Return a whole text as a document."""
        return Document(span.split, text)

    def parse_record(self, record: Record, span: InputRange, number: int = 0) -> Document | Bad:
        """Return the document in the text column."""
        if self.text_column not in record:
            known = ", ".join(sorted(record)[:8]) or "none"
            return Bad("", f"no column {self.text_column!r} (has {known})")
        result = usable_text(record[self.text_column], f"column {self.text_column!r}")
        if isinstance(result, Bad):
            return result
        split = record_split(span, record, self.group_column, self.fraction, self.seed)
        return split if isinstance(split, Bad) else Document(split, result, number)

    def columns(self, stored: pa.Schema, span: InputRange) -> list[str] | Bad:
        """Return the text column, and the group column where it determines the split."""
        wanted = [self.text_column]
        if span.split == BY_RECORD and self.group_column is not None:
            wanted.append(self.group_column)
        return _column_problem(stored, wanted) or wanted


def usable_text(value: object, what: str) -> str | Bad:
    """Return a value that is text, or a Bad."""
    if isinstance(value, str):
        return value
    kind = "null" if value is None else type(value).__name__
    return Bad("", f"{what} holds {kind}, expected text")


def _column_problem(stored: pa.Schema, wanted: list[str]) -> Bad | None:
    for name in wanted:
        if name not in stored.names:
            return Bad("", f"no column {name!r} (has {', '.join(stored.names[:8])})")
    kind = stored.field(wanted[0]).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    ):
        return Bad("", f"column {wanted[0]!r} holds {kind}, expected text")
    return None
