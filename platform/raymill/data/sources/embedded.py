"""Texts that come with the package or are generated: the running Python's library, and the demonstration."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, ClassVar

from raymill.data.demo import corpus as demo_corpus
from raymill.data.demo import stdlib_corpus
from raymill.data.sources.format import Bad, Format, Found, Place, RecordParser
from raymill.data.sources.inputs import InputRange


class _Embedded(Format):
    is_embedded: ClassVar[bool] = True
    has_columns: ClassVar[bool] = False

    def read(self, span: InputRange, parser: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
        offset = 0
        try:
            for content in self.range_bytes(span):
                digest.update(content)
                place = Place(offset, len(content), hashlib.sha256(content).digest())
                offset += len(content)
                yield self.parsed(Found({}, place, content.decode()), span, parser)
        except (UnicodeDecodeError, SyntaxError) as error:
            yield Bad(span.name, str(error))


class StandardLibrary(_Embedded):
    """Documentation and source of the running Python."""

    name: ClassVar[str] = "stdlib"

    def range_bytes(self, span: InputRange) -> Iterator[bytes]:
        yield stdlib_corpus.read(span.name).encode()


class Demonstration(_Embedded):
    """Notes of the demonstration, generated from their names."""

    name: ClassVar[str] = "demo"

    def range_bytes(self, span: InputRange) -> Iterator[bytes]:
        for text in demo_corpus.documents(span.name):
            yield text.encode()
