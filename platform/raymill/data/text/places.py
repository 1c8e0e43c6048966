"""Places in input files, for messages: looked up only when there is something to name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from raymill.data.store.shards import parsed_footer, read_footer
from raymill.data.text.raw_streams import READ_BYTES
from raymill.data.text.sources import Piece
from raymill.reading import opened


def place_of(piece: Piece, number: int) -> str:
    """Return where line or row `number` of a piece stands, for a message."""
    kind = ", row " if piece.format in ("parquet", "arrow") else ":"
    return f"{piece.name}{kind}{_first_number(piece) + number}"


@lru_cache(maxsize=64)
def _first_number(piece: Piece) -> int:
    if piece.format == "arrow":
        return 0
    if piece.format == "parquet":
        path = Path(piece.path)
        metadata = parsed_footer(path, read_footer(path))
        return sum(metadata.row_group(group).num_rows for group in range(piece.first_group))
    return first_line(piece)


def first_line(piece: Piece) -> int:
    """The number of a piece's first line."""
    left, lines = piece.offset, 1
    with opened(Path(piece.path)) as file:
        while left and (content := file.read(min(READ_BYTES, left))):
            lines += content.count(b"\n")
            left -= len(content)
    return lines
