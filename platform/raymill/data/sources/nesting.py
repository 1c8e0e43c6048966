"""Depth of nested elements in a page, found before it is parsed: each level costs a parser stack and time."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

_STEP = np.zeros(256, np.int64)
_STEP[ord("/")] = -1
for _letter in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ":
    _STEP[_letter] = 1
_TAG = re.compile(
    rb"<!--.*?-->|<(script|style|textarea|title)\b.*?</\1|<(/?)([a-z][a-z0-9:-]*)[^<>]*?(/?)>",
    re.IGNORECASE | re.DOTALL,
)
_VOID = frozenset(
    b"area base br col embed hr img input link meta param source track wbr".split(),
)
# An element of these ends where the next one of its kind begins, often without a tag.
_ENDS_ITSELF = frozenset(b"p li dt dd tr td th option tbody thead tfoot".split())


def nests_deeper(content: bytes, limit: int) -> bool:
    """Return whether elements of a page nest deeper than `limit`, in time linear in its bytes.

    Pages that pass may still be deep in the eyes of a parser that repairs them.
    """
    codes = np.frombuffer(content, np.uint8)
    at = np.flatnonzero(codes[:-1] == ord("<"))
    depth = np.cumsum(_STEP[codes[at + 1]])
    # Tags that never end, as <br>, count as levels here, so nearly all pages end with this bound.
    if not len(depth) or (depth - np.minimum(np.minimum.accumulate(depth), 0)).max() <= limit:
        return False
    stack: list[bytes] = []
    counts: Counter[bytes] = Counter()
    for tag in _TAG.finditer(content):
        closing, name, empty = tag[2], (tag[3] or b"").lower(), tag[4]
        if not name or name in _VOID or empty:
            continue
        if closing:
            # A tag that closes nothing is ignored, as browsers do.
            while counts[name] and (last := stack.pop()):
                counts[last] -= 1
                if last == name:
                    break
        elif not (name in _ENDS_ITSELF and stack and stack[-1] == name):
            stack.append(name)
            counts[name] += 1
            if len(stack) > limit:
                return True
    return False
