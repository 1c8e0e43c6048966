"""A rendering cut into what the assistant wrote and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymill.data.messages.guard import SPOKEN_BEGIN, SPOKEN_END
from raymill.errors import DataError


@dataclass(frozen=True)
class Segment:
    """A part of a rendering. `turn`: which assistant turn spoke it (0 is the first); the template's
    own text and turns that aren't learned have none. `thought`: from where to where it is thinking
    that isn't learned, though the rest is."""

    text: str
    learned: bool
    turn: int | None = None
    thought: tuple[int, int] = (0, 0)


def blocks(text: str) -> tuple[list[tuple[str, int | None]], int]:
    """Parts with the number of the marked block they are in, and how many such blocks there are.

    Raises:
        DataError: marks stand within marks, or alone.
    """
    opened = text.split(SPOKEN_BEGIN)
    parts: list[tuple[str, int | None]] = [(opened[0], None)]
    for number, piece in enumerate(opened[1:]):
        inside, end, outside = piece.partition(SPOKEN_END)
        if not end or SPOKEN_END in outside:
            raise DataError("The chat template nests {% generation %} markers, or cuts them off.")
        parts += [(inside, number), (outside, None)]
    if SPOKEN_END in opened[0]:
        raise DataError("The chat template nests {% generation %} markers, or cuts them off.")
    return parts, len(opened) - 1


def cut(text: str, spans: Sequence[tuple[int, int, int]]) -> list[Segment]:
    """A text in segments: spans are (start, stop, turn), in order. Empty ones are left out, and
    neighbours of the same kind are one."""
    parts: list[Segment] = []
    done = 0
    for start, stop, turn in spans:
        parts += [Segment(text[done:start], False), Segment(text[start:stop], True, turn)]
        done = stop
    merged: list[Segment] = []
    for part in (*parts, Segment(text[done:], False)):
        last = merged[-1] if merged else None
        if last and (last.turn == part.turn or not part.text):
            merged[-1] = Segment(last.text + part.text, last.learned, last.turn)
        elif part.text:
            merged.append(part)
    return merged


def common_start(one: str, other: str) -> str:
    """The longest text with which both begin."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return one[:low]
