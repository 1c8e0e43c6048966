"""A mixture as it will be drawn: the order shares out the slots of a cycle, so that weights are rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raymill.data.store.order import PATTERN, pattern_slots

TOLERANCE = 0.01  # of a source's weight; a share that is off by more is warned of


def drawn_shares(mixture: Mapping[str, float]) -> str:
    """Each source's share of the samples, as in `wiki 70%, code 30% of the samples`."""
    slots = pattern_slots([*mixture.values()])
    shares = (f"{name} {_percent(n / PATTERN)}" for name, n in zip(mixture, slots, strict=True))
    return f"{', '.join(shares)} of the samples"


def rounding_warnings(mixture: Mapping[str, float]) -> Iterator[str]:
    """A sentence for each source that will be drawn more or less often than its weight says."""
    total = sum(mixture.values())
    slots = pattern_slots([*mixture.values()])
    for (name, weight), count in zip(mixture.items(), slots, strict=True):
        asked, used = weight / total, count / PATTERN
        if abs(used - asked) > TOLERANCE * asked:
            becomes = f"will be {_percent(used)} of the samples" if count else "will never be drawn"
            yield (
                f"data.mixture: weights are rounded to 1/{PATTERN}: {name} has {_percent(asked)} of the "
                f"weights and {becomes}"
            )


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
