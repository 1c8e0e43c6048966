"""Counters of data that add up over the units of a preparation, and histograms of lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from raymill.durable import JsonObject


@dataclass
class Counters:
    """Base of counters; fields are numbers and Counters, initially 0 and empty."""

    def to_json(self) -> JsonObject:
        """Return the counts in the form that a unit stores."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, Any]]) -> Self:
        """Sum up the counts of several units."""
        total = cls()
        for part in parts:
            for name, value in part.items():
                if isinstance(value, Mapping):
                    getattr(total, name).update(value)
                else:
                    setattr(total, name, getattr(total, name) + value)
        return total


def length_class(tokens: int) -> str:
    """Return the smallest power of two that is at least `tokens`, as text."""
    return str(1 << max(0, tokens - 1).bit_length())


def histogram(lengths: Mapping[str, int], count: int) -> str:
    """Describe `count` lengths by their class, as in `≤16: 3%, ≤32: 97%`."""
    return ", ".join(
        f"≤{bound}: {lengths[bound] / count:.0%}" for bound in sorted(lengths, key=int)
    )
