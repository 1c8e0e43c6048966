"""A long text's tokens, from windows that overlap: the tokens that the whole text has.

Where two windows agree on a run of tokens, what stands before and behind it was decided without the windows'
edges: BPE's tokens are valid if every neighbouring pair is, the likeliest pieces of Unigram meet again, and
words are cut by what stands around them. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RUN = 8  # neighbouring tokens that two windows must agree on


@dataclass(frozen=True)
class Tokens:
    """Ids [n] and the characters that each stands for, as [n, 2] first and one after the last."""

    ids: NDArray[np.uint32]
    offsets: NDArray[np.int64]

    def slice(self, start: int | None, stop: int | None) -> Tokens:
        """Some of the tokens."""
        return Tokens(self.ids[start:stop], self.offsets[start:stop])

    def rows(self) -> list[tuple[int, ...]]:
        """(id, first, last) of every token."""
        columns = (self.ids.tolist(), *self.offsets.T.tolist())
        return list(zip(*columns, strict=True))


def in_windows(text: str, size: int, encode: Callable[[str], Tokens]) -> Tokens:
    """Return what `encode` makes of the text, given at most `size` characters at once; all of them at once
    where two windows agree nowhere, as within a single word of that length."""
    overlap = size // 8
    parts = [encode(text[:size])]
    stop = min(size, len(text))
    while stop < len(text):
        before = parts[-1]
        start = _last_end(before, stop - overlap)
        stop = min(start + size, len(text))
        found = encode(text[start:stop])
        after = Tokens(found.ids, found.offsets + start)
        joint = _joint(before, after, start)
        if joint is None:
            return encode(text)
        parts[-1] = before.slice(None, joint[0])
        parts.append(after.slice(joint[1], None))
    return Tokens(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.offsets for part in parts]),
    )


def _last_end(tokens: Tokens, before: int) -> int:
    """Return where the last token ends that ends at most there: a window that begins there is in step."""
    ends = tokens.offsets[:, 1]
    ends = ends[ends <= before]
    return int(ends.max()) if len(ends) else before


def _joint(before: Tokens, after: Tokens, start: int) -> tuple[int, int] | None:
    """Return how many tokens of the one, and from which of the other on: amid a run that both have."""
    first = int(np.searchsorted(before.offsets[:, 1], start, side="right"))
    left = before.slice(first, None).rows()
    right = after.slice(None, len(left) + RUN).rows()
    if not left and not right:
        return len(before.ids), 0
    place = {row: index for index, row in enumerate(left)}
    # The middle of what they share is far from both edges.
    for number in sorted(range(len(right)), key=lambda index: abs(index - len(left) // 2)):
        at = place.get(right[number])
        run = right[number : number + RUN]
        if at is not None and len(run) == RUN and left[at : at + RUN] == run:
            return first + at + RUN // 2, number + RUN // 2
    return None
