"""Which side of the held-out split a group of documents falls on: a seeded hash of its name,
nothing else.

A hash keeps the decision local (no list of groups travels to the workers) and stable: adding a
file moves no other file to the other side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

TRAIN = "train"
VALIDATION = "validation"


def unit_hash(name: str, seed: int) -> float:
    """A number in [0, 1) from a name and a seed, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def is_held_out(group: str, fraction: float, seed: int) -> bool:
    """Whether a group belongs to the validation split."""
    return unit_hash(group, seed) < fraction


def held_out_groups(groups: Iterable[str], fraction: float, seed: int) -> frozenset[str]:
    """The held-out ones of all groups; of two or more groups at least one, and never all.

    Few files and a small fraction would otherwise often hold out nothing.
    """
    ranked = sorted(set(groups), key=lambda group: (unit_hash(group, seed), group))
    if len(ranked) < 2 or fraction <= 0:
        return frozenset()
    count = sum(is_held_out(group, fraction, seed) for group in ranked)
    return frozenset(ranked[: min(max(count, 1), len(ranked) - 1)])
