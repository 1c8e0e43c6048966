"""Tokens of a long text, from overlapping windows: exactly the tokens of the whole text.

Where two windows agree on a run of tokens, the tokens before and behind it don't depend on the
windows' edges: BPE's tokens are valid if every neighboring pair is, the likeliest pieces of Unigram
meet again, and words are cut by their surroundings. Numpy only.
"""

from __future__ import annotations

from collections.abc import Callable
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

    def rows(self) -> list[tuple[int, ...]]:
        """Return (id, first, last) of every token."""
        columns = (self.ids.tolist(), *self.offsets.T.tolist())
        return list(zip(*columns, strict=True))


def in_windows(text: str, size: int, encode: Callable[[str], TokenSpans]) -> TokenSpans:
    """Return the tokens of a text from `encode`, which is called with at most `size` characters at
    once.

    The whole text is encoded at once where two windows agree nowhere, as within one word of that
    length.
    """
    overlap = size // 8
    parts = [encode(text[:size])]
    stop = min(size, len(text))
    while stop < len(text):
        before = parts[-1]
        # The next window starts where a token of this one ends, so that both may agree at once.
        start = _last_end(before, stop - overlap)
        stop = min(start + size, len(text))
        tokens = encode(text[start:stop])
        after = TokenSpans(tokens.ids, tokens.offsets + start)
        joint = _joint(before, after, start)
        if joint is None:
            return encode(text)
        parts[-1] = before.slice(None, joint[0])
        parts.append(after.slice(joint[1], None))
    return TokenSpans(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.offsets for part in parts]),
    )


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
    left = before.slice(first, None).rows()
    right = after.slice(None, len(left) + RUN).rows()
    if not left and not right:
        return len(before.ids), 0
    index_of = {row: index for index, row in enumerate(left)}
    # The middle of the common part is far from both edges.
    for number in sorted(range(len(right)), key=lambda index: abs(index - len(left) // 2)):
        index_before = index_of.get(right[number])
        run = right[number : number + RUN]
        if (
            index_before is not None
            and len(run) == RUN
            and left[index_before : index_before + RUN] == run
        ):
            return first + index_before + RUN // 2, number + RUN // 2
    return None
