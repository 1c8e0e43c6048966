"""JSON Lines: a line is a record."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import ClassVar

from raymill.data.sources.format import Bad, Format, Found, Place
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.json_values import UnusableRecordError, parse_record
from raymill.data.sources.raw_streams import LINE_BYTES, READ_BYTES, line_ranges


class JsonLines(Format):
    """Objects of JSON in UTF-8, one a line."""

    name: ClassVar[str] = "jsonl"
    endings: ClassVar[tuple[str, ...]] = ("jsonl",)
    text_only: ClassVar[bool] = False
    compressible: ClassVar[bool] = True

    def cut(self, file: InputRange, unit_bytes: int) -> Iterator[InputRange]:
        yield from line_ranges(file, unit_bytes)

    def records(self, span: InputRange, stream: io.BufferedReader) -> Iterator[Found | Bad]:
        position, number, empty = span.offset, 0, True
        while line := stream.readline(LINE_BYTES):
            length = len(line)
            if line.strip():
                empty = False
                yield self._record(line, span, Place(position, length, b"", number))
            if not line.endswith(b"\n") and length == LINE_BYTES:
                # Skip the rest of the overlong line.
                while line and not line.endswith(b"\n"):
                    line = stream.readline(READ_BYTES)
                    length += len(line)
            position += length
            number += 1
        if empty and span.length == span.file_bytes:
            yield Bad(span.name, "the file holds no record")

    def _record(self, line: bytes, span: InputRange, place: Place) -> Found | Bad:
        if len(line) == LINE_BYTES and not line.endswith(b"\n"):
            why = f"the line is longer than {LINE_BYTES >> 20} MiB"
            return Bad(self.location(span, place.number), why)
        try:
            record = parse_record(line)
        except UnusableRecordError as error:
            return Bad(self.location(span, place.number), str(error), cause=error.cause)
        digest = hashlib.sha256(line).digest()
        return Found(record, Place(place.offset, place.length, digest, place.number))
