"""Documents: records that hold one text each, and the split that each of them belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import pyarrow as pa

from raymill.data.sources.format import Bad, Place, Record, record_split
from raymill.data.sources.inputs import BY_RECORD, InputRange


@dataclass(frozen=True, slots=True)
class Document:
    """Text, its split, and its origin: `place` in the input range that it was read from.

    `source` is the name of the declared source, `url` and `language` are "" while unknown. `file` is the
    input that the place lies in, "" where that is the input range's; `group` is the value of
    `data.validation.group_column`, "" where there is none.
    """

    split: str
    text: str
    place: Place
    source: str = ""
    url: str = ""
    language: str = ""
    file: str = ""
    group: str = ""


@dataclass(frozen=True)
class DocumentParser:
    """Parser of records into documents, with the configuration that determines how."""

    text_column: str
    group_column: str | None
    fraction: float
    seed: int

    def parse_text(
        self, text: str, values: Record, span: InputRange, place: Place
    ) -> Document | Bad:
        """Return a whole text as a document."""
        source = span.source
        split = record_split(span, values, self.group_column, self.fraction, self.seed)
        if isinstance(split, Bad):
            return split
        language = _known(values, "language") or source.language
        url, group = _known(values, "url"), self._group(values)
        return Document(split, text, place, source.name, url, language, group=group)

    def parse_record(self, record: Record, span: InputRange, place: Place) -> Document | Bad:
        """Return the document in the text column."""
        source = span.source
        column = source.text_column or self.text_column
        if column not in record:
            known = ", ".join(sorted(record)[:8]) or "none"
            return Bad("", f"no column {column!r} (has {known})")
        text = usable_text(record[column], f"column {column!r}")
        if isinstance(text, Bad):
            return text
        split = record_split(span, record, self.group_column, self.fraction, self.seed)
        if isinstance(split, Bad):
            return split
        if not place.sha256:
            place = replace(place, sha256=hashlib.sha256(text.encode()).digest())
        language = _known(record, source.language_column) or source.language
        url = _known(record, source.url_column)
        group = self._group(record)
        return Document(split, text, place, source.name, url, language, group=group)

    def _group(self, record: Record) -> str:
        """Return the value of the group column as text."""
        value = record.get(self.group_column) if self.group_column is not None else None
        return "" if value is None else str(value)

    def columns(self, stored: pa.Schema, span: InputRange) -> list[str] | Bad:
        """Return the text column, the group column where it determines the split, and what the
        source has of the others."""
        source = span.source
        wanted = [source.text_column or self.text_column]
        if span.split == BY_RECORD and self.group_column is not None:
            wanted.append(self.group_column)
        problem = _column_problem(stored, wanted)
        others = (source.url_column, source.language_column)
        wanted += [name for name in others if name in stored.names and name is not None]
        return problem or [*dict.fromkeys(wanted)]


def _known(record: Record, column: str | None) -> str:
    """Return a text that a record may have."""
    value = record.get(column) if column is not None else None
    return value if isinstance(value, str) else ""


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
