"""Read the records of an input range, one after another, whatever its format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from raymill.data.sources.format import DAMAGE, Bad, DamagedInputError, RecordParser
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.raw_streams import input_state
from raymill.data.sources.registry import format_named
from raymill.data.store.manifest import AGAIN
from raymill.errors import DataError


def read_records(span: InputRange, parser: RecordParser, digest: hashlib._Hash) -> Iterator[Any]:
    """Yield the records of an input range in file order, each parsed by `parser`, or a Bad.

    `digest` has been updated with all bytes of the range when the iterator ends.

    In a declared source, a file that is damaged beyond single records is a Bad, after the records before the
    damage.

    Raises:
        DataError: the file is gone, has changed since it was planned, or is damaged where no source is
            declared.
        StorageError: it can't be read, which says nothing about its bytes.
    """
    if span.length == 0:
        yield Bad(span.name, "the file is empty")
        return
    form = format_named(span.format)
    if form.is_embedded:
        yield from form.read(span, parser, digest)
        return
    try:
        if input_state(span.path) != (span.file_bytes, span.modified_ns):
            raise DataError(
                f"{span.path} changed during preparation; {AGAIN} when it no longer changes."
            )
        yield from form.read(span, parser, digest)
    except (DamagedInputError, *DAMAGE) as error:
        if span.source.name:
            why = f"can't be read to its end ({error}); what comes before is used"
            yield Bad(span.name, why, cause="damaged")
            return
        if isinstance(error, DataError):
            raise
        raise DamagedInputError(
            f"{span.path} can't be read to its end ({error}): the file is damaged or incomplete; "
            f"replace or remove it and {AGAIN}."
        ) from error
