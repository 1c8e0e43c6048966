"""Tokens of a long text, from overlapping windows: exactly the tokens of the whole text.

Where two windows agree on a run of tokens, the tokens before and behind it don't depend on the
windows' edges: BPE's tokens are valid if every neighboring pair is, the likeliest pieces of Unigram
meet again, and words are cut by their surroundings. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Neighboring tokens that two windows must agree on.
RUN = 8


@dataclass(frozen=True)
class TokenSpans:
    """Ids [n], and the characters that each stands for, as [n, 2] first and one after the last."""

    ids: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    def slice(self, start: int | None, stop: int | None) -> TokenSpans:
        """Select some of the tokens."""
        return TokenSpans(self.ids[start:stop], self.offsets[start:stop])


def in_windows(
    text: str, size: int, overlap: int, encode: Callable[[str], TokenSpans]
) -> Iterator[TokenSpans]:
    """Yield the tokens of a text, part by part, from `encode` of about `size` characters at once.

    Offsets are those in the whole text. Windows overlap by `overlap` characters; one that agrees
    nowhere with its successor, as within one word of that length, is doubled.
    """
    begin, stop = 0, min(size, len(text))
    before, first = encode(text[:stop]), 0
    while stop < len(text):
        # The next window starts where a token of this one ends, so that both may agree at once.
        start = max(begin + 1, _last_end(before, stop - overlap))
        next_stop = min(start + size, len(text))
        after = _encoded(text, start, next_stop, encode)
        joint = _joint(before, after, start)
        if joint is not None and joint[0] >= first:
            yield before.slice(first, joint[0])
            begin, stop, before, first = start, next_stop, after, joint[1]
            continue
        mark = int(before.offsets[first, 0]) if first < len(before.ids) else stop
        stop = min(begin + 2 * (stop - begin), len(text))
        before = _encoded(text, begin, stop, encode)
        first = int(np.searchsorted(before.offsets[:, 0], mark))
        if begin and (first == len(before.ids) or int(before.offsets[first, 0]) != mark):
            # The tokens that were yielded end here, whatever the longer window says.
            begin, first = mark, 0
            before = _encoded(text, begin, stop, encode)
    yield before.slice(first, None)


def _encoded(text: str, start: int, stop: int, encode: Callable[[str], TokenSpans]) -> TokenSpans:
    tokens = encode(text[start:stop])
    return TokenSpans(tokens.ids, tokens.offsets + start)


def _last_end(tokens: TokenSpans, before: int) -> int:
    """Return the end of the last token that ends by `before`: a window that starts there is in
    step."""
    ends = tokens.offsets[:, 1]
    ends = ends[ends <= before]
    return int(ends.max()) if len(ends) else before


def _joint(before: TokenSpans, after: TokenSpans, start: int) -> tuple[int, int] | None:
    """Return the number of tokens to take from `before`, and the first to take from `after`.

    Both are in the middle of a run that the two have in common; None if they have none.
    """
    first = int(np.searchsorted(before.offsets[:, 1], start, side="right"))
    left, right = before.slice(first, None), after.slice(None, len(before.ids) - first + RUN)
    if not len(left.ids) and not len(right.ids):
        return len(before.ids), 0
    if min(len(left.ids), len(right.ids)) < RUN:
        return None
    left_keys, right_keys = _keys(left, start), _keys(right, start)
    # The last of equal tokens on the left, for each on the right.
    order = np.argsort(left_keys, kind="stable")
    place = np.searchsorted(left_keys[order], right_keys, side="right") - 1
    match = order[np.maximum(place, 0)]
    agrees = np.arange(len(right_keys)) <= len(right_keys) - RUN
    agrees &= match <= len(left_keys) - RUN
    numbers = np.flatnonzero(agrees)
    for step in range(RUN):
        at_left, at_right = match[numbers] + step, numbers + step
        same = left_keys[at_left] == right_keys[at_right]
        same &= left.offsets[at_left, 1] == right.offsets[at_right, 1]
        numbers = numbers[same]
    if not len(numbers):
        return None
    # The middle of the common part is far from both edges.
    number = int(numbers[np.argmin(np.abs(numbers - len(left_keys) // 2))])
    return first + int(match[number]) + RUN // 2, number + RUN // 2


def _keys(tokens: TokenSpans, start: int) -> NDArray[np.int64]:
    """Return one number for a token's id and first character; these are below 2³¹."""
    keys: NDArray[np.int64] = (tokens.offsets[:, 0] - start) << 32 | tokens.ids.astype(np.int64)
    return keys
