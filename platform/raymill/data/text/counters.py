"""Counts of data that add up over units, and histograms of lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass
class Sums:
    """Fields are numbers and Counters, 0 and empty at the beginning."""

    def to_json(self) -> dict[str, Any]:
        """As a unit hands it on."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, Any]]) -> Self:
        """The sum of several units' counts."""
        total = cls()
        for part in parts:
            for name, value in part.items():
                if isinstance(value, Mapping):
                    getattr(total, name).update(value)
                else:
                    setattr(total, name, getattr(total, name) + value)
        return total


def length_class(tokens: int) -> str:
    """The power of two that is at least so many tokens."""
    return str(1 << max(0, tokens - 1).bit_length())


def histogram(lengths: Mapping[str, int], count: int) -> str:
    """`≤16: 3%, ≤32: 97%` of `count` things, by `length_class`."""
    return ", ".join(
        f"≤{bound}: {lengths[bound] / count:.0%}" for bound in sorted(lengths, key=int)
    )
