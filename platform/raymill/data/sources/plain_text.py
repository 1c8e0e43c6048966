"""Plain text: a file is one document, a long one several."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import ClassVar

from raymill.data.sources.format import Bad, Format, Found, Place
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.json_values import not_utf8
from raymill.data.sources.raw_streams import LINE_BYTES, line_ranges, whole_characters

# A longer text file is read as several documents, cut at line ends.
DOCUMENT_BYTES = 8 * 2**20
# A text may have one NUL in so many characters. ASCII in UTF-16 is valid UTF-8 too, but every second
# character of it is NUL.
CHARACTERS_PER_NUL = 4


class PlainText(Format):
    """Text in UTF-8, of any ending that is declared."""

    name: ClassVar[str] = "text"
    endings: ClassVar[tuple[str, ...]] = ("txt", "md")
    has_columns: ClassVar[bool] = False
    compressible: ClassVar[bool] = True

    def cut(self, file: InputRange, unit_bytes: int) -> Iterator[InputRange]:
        yield from line_ranges(file, unit_bytes)

    def records(self, span: InputRange, stream: io.BufferedReader) -> Iterator[Found | Bad]:
        position, line, rest = span.offset, 0, b""
        while content := rest + stream.read(DOCUMENT_BYTES - len(rest)):
            rest = b""
            if len(content) == DOCUMENT_BYTES:
                content += stream.readline(LINE_BYTES)
                # A line that is longer than the limit is cut in the middle of it.
                whole = whole_characters(content) if stream.peek(1) else content
                content, rest = whole, content[len(whole) :]
            text = self._text(content, span, line)
            if isinstance(text, str):
                if not position:
                    text = text.removeprefix("\ufeff")
                digest = hashlib.sha256(content).digest()
                yield Found({}, Place(position, len(content), digest), text)
            else:
                yield text
            position += len(content)
            line += content.count(b"\n")

    def _text(self, content: bytes, span: InputRange, line: int) -> str | Bad:
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            number = line + content.count(b"\n", 0, error.start)
            return Bad(self.location(span, number), not_utf8(content, error))
        if text.count("\0") > len(text) // CHARACTERS_PER_NUL:
            why = "full of NUL characters, as UTF-16 is; convert it to UTF-8"
            return Bad(self.location(span, line), why)
        return text
