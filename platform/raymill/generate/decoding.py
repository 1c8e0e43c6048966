"""Text of tokens that are still being drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


def decode_stream(tokenizer: Any, tokens: Iterable[int]) -> Iterator[str]:
    """Text as it becomes certain: a character made of several tokens is held back until whole."""
    ids: list[int] = []
    shown = 0  # ids whose text was given out
    for token in tokens:
        ids.append(token)
        piece = tokenizer.decode(ids[shown:], skip_special_tokens=True)
        if piece and not piece.endswith("\ufffd"):
            yield piece
            shown = len(ids)
    if shown < len(ids):
        yield tokenizer.decode(ids[shown:], skip_special_tokens=True)
