"""Steps that drop documents by bounds on signals."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from raymill.data.corpus.cleaning.step import CleaningStep
from raymill.data.corpus.draft import Draft


class Signal(NamedTuple):
    """Measurement of a document; `reason` says what is wrong with it, and is None within the bounds."""

    name: str
    value: float
    reason: str | None = None


class RuleStep(CleaningStep):
    """Step that measures one signal after another, and drops a document at the first that is out of bounds."""

    def signals(self, draft: Draft) -> Iterator[Signal]:
        """Yield the measurements in the order of the rules; later ones cost nothing if an earlier one drops."""
        raise NotImplementedError

    def apply(self, draft: Draft) -> str | None:
        for name, value, reason in self.signals(draft):
            draft.signals[f"{self.name}.{name}"] = value
            if reason is not None:
                return reason
        return None

    def annotate(self, draft: Draft) -> None:
        draft.signals.update(
            (f"{self.name}.{name}", value) for name, value, _ in self.signals(draft)
        )


def at_most(name: str, value: float, limit: float | None, reason: str) -> Signal:
    """Return the signal, with the reason if it is above the limit."""
    return Signal(name, value, reason if limit is not None and value > limit else None)


def at_least(name: str, value: float, limit: float | None, reason: str) -> Signal:
    """Return the signal, with the reason if it is below the limit."""
    return Signal(name, value, reason if limit is not None and value < limit else None)


def share(part: float, whole: float) -> float:
    """Return a part's share, 0 of nothing."""
    return part / whole if whole else 0.0


def duplicates(items: Sequence[str]) -> tuple[int, int]:
    """Count the items that are equal to an earlier one, and their characters."""
    distinct: Collection[str] = set(items)
    characters = sum(map(len, items)) - sum(map(len, distinct))
    return len(items) - len(distinct), characters
