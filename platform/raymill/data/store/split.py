"""Split of documents into training and validation, by a seeded hash of a group's name and nothing
else.

A hash keeps the decision local (workers need no list of groups) and stable: adding a file moves no
other file into another split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

TRAIN = "train"
VALIDATION = "validation"


def hash_fraction(name: str, seed: int) -> float:
    """Map a name and a seed to a number in [0, 1), the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def is_held_out(group: str, fraction: float, seed: int) -> bool:
    """Return whether a group belongs to the validation split."""
    return hash_fraction(group, seed) < fraction


def held_out_groups(groups: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """Return the held-out groups; of two or more groups at least one, and never all.

    Without that rule, few files and a small fraction would often hold out nothing.
    """
    ranked = sorted(set(groups), key=lambda group: (hash_fraction(group, seed), group))
    # A single group can't be in both splits.
    if len(ranked) < 2 or fraction <= 0:
        return frozenset()
    # The first groups of the ranking are exactly those that `is_held_out` selects.
    count = sum(is_held_out(group, fraction, seed) for group in ranked)
    return frozenset(ranked[: min(max(count, 1), len(ranked) - 1)])
