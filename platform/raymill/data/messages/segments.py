"""A rendering, cut into segments: the assistant's text and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymill.data.messages.guard import ASSISTANT_BEGIN, ASSISTANT_END
from raymill.errors import DataError


@dataclass(frozen=True)
class RenderedSegment:
    """A part of a rendering.

    `turn` is the number of the assistant's turn that it belongs to, from 0; the template's own text and turns
    that aren't learned have none. `thought` is the range of characters (start, stop) that is thinking and isn't
    learned, though the rest is.
    """

    text: str
    learned: bool
    turn: int | None = None
    thought: tuple[int, int] = (0, 0)


def marked_blocks(text: str) -> tuple[list[tuple[str, int | None]], int]:
    """Return a text's parts, each with the number of its marked block or None, and the number of blocks.

    Raises:
        DataError: markers are nested or unpaired.
    """
    opened = text.split(ASSISTANT_BEGIN)
    parts: list[tuple[str, int | None]] = [(opened[0], None)]
    for number, part in enumerate(opened[1:]):
        inside, end, outside = part.partition(ASSISTANT_END)
        if not end or ASSISTANT_END in outside:
            raise DataError("The chat template nests {% generation %} markers, or cuts them off.")
        parts += [(inside, number), (outside, None)]
    if ASSISTANT_END in opened[0]:
        raise DataError("The chat template nests {% generation %} markers, or cuts them off.")
    return parts, len(opened) - 1


def segment_text(text: str, spans: Sequence[tuple[int, int, int]]) -> list[RenderedSegment]:
    """Cut a text into segments by the spans (start, stop, turn) of the assistant's turns, in order.

    Empty segments are left out, and neighbors of the same turn are merged.
    """
    parts: list[RenderedSegment] = []
    done = 0
    for start, stop, turn in spans:
        parts.append(RenderedSegment(text[done:start], False))
        parts.append(RenderedSegment(text[start:stop], True, turn))
        done = stop
    merged: list[RenderedSegment] = []
    for part in (*parts, RenderedSegment(text[done:], False)):
        last = merged[-1] if merged else None
        # Adjacent spans of one turn become one segment, as if the template had not interrupted it.
        if last and (last.turn == part.turn or not part.text):
            merged[-1] = RenderedSegment(last.text + part.text, last.learned, last.turn)
        elif part.text:
            merged.append(part)
    return merged


def common_prefix(first: str, second: str) -> str:
    """Return the longest text with which both begin."""
    # Bisection compares slices in C, which is faster than a loop over characters.
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return first[:low]
