"""Counts of a corpus: what each step left out of each source, and what the documents are like.

They are JSON objects of numbers that add up over units, in any order and grouping.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from raymill.data.sources.counters import length_class
from raymill.durable import JsonObject
from raymill.errors import DataError


def add(total: JsonObject, part: JsonObject) -> JsonObject:
    """Add the numbers of `part` to `total`, which is returned; objects are added key by key."""
    for key, value in part.items():
        if isinstance(value, dict):
            add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value
    return total


@dataclass
class SourceCounts:
    """Counts of one source in one unit: before cleaning, after it, and what was dropped between.

    `dropped`: documents by step and reason, and their characters by step; `lengths`: documents by the
    power of two that their characters don't exceed; `languages`: kept documents by code.
    """

    documents: int = 0
    characters: int = 0
    bad: int = 0
    kept: int = 0
    kept_characters: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped_characters: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    kept_lengths: dict[str, int] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)

    def see(self, characters: int) -> None:
        """Count a document that was read."""
        self.documents += 1
        self.characters += characters
        _count(self.lengths, length_class(characters))

    def drop(self, step: str, reason: str, characters: int) -> None:
        """Count a document that a step dropped, with the characters it was read with."""
        _count(self.dropped.setdefault(step, {}), reason)
        _count(self.dropped_characters, step, characters)

    def pass_over(self, reason: str) -> None:
        """Count a record that is no document, as a page without main text."""
        self.documents += 1
        self.drop("extraction", reason, 0)

    def keep(self, characters: int, language: str) -> None:
        """Count a document that was kept, with the characters that are left."""
        self.kept += 1
        self.kept_characters += characters
        _count(self.kept_lengths, length_class(characters))
        _count(self.languages, language)

    def change(self, step: str) -> None:
        """Count a document whose text a step has changed."""
        _count(self.changed, step)

    def to_json(self) -> JsonObject:
        """Return the counts as a JSON object of its own."""
        return dict(vars(self))


def _count(counts: dict[str, int], key: str, amount: int = 1) -> None:
    counts[key] = counts.get(key, 0) + amount


def refuse_greedy_steps(
    sources: JsonObject, limits: Iterable[tuple[str, float]], least: int = 0
) -> None:
    """Raise DataError where a step dropped more than its share of a source.

    `limits` are steps with their shares; sources of fewer than `least` documents aren't judged.
    """
    for step, limit in limits:
        for source, counts in sorted(sources.items()):
            reasons: dict[str, Any] = counts["dropped"].get(step, {})
            dropped, documents = sum(reasons.values()), counts["documents"]
            if documents < max(least, 1) or dropped <= limit * documents:
                continue
            listed = ", ".join(
                f"{count:,} {reason}"
                for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
            )
            raise DataError(
                f"The step {step} dropped {dropped:,} of {documents:,} documents of the source "
                f"{source} ({dropped / documents:.1%}: {listed}), more than data.cleaning.{step}."
                f"max_dropped={limit:g} allows. Look at some with data.keep_rejects or preview=5; then "
                "change the step's parameters, take the source out, or raise the limit."
            )
