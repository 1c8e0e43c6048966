"""What a set of pairs is like: counts that add up over units, and how they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymill.data.text.counters import Counters, histogram, length_class


@dataclass
class Statistics(Counters):
    """Sums over pairs; histograms are by the power of two that is at least the length."""

    comparisons: int = 0  # records
    pairs: int = 0
    ties: int = 0  # pairs of answers judged equal: nothing is learned from them
    tokens: int = 0  # of both sides, prompts included
    learned: int = 0
    chosen_longer: int = 0  # pairs whose better answer has more learned tokens
    rejected_longer: int = 0
    longer_by: int = 0  # learned tokens of the better answers, less those of the worse
    margins: int = 0  # pairs of which it is known by how much one is better
    weighted: int = 0  # comparisons with a weight other than 1
    lengths: Counter[str] = field(default_factory=Counter)  # sides by tokens

    def add(self, chosen: tuple[int, int], rejected: tuple[int, int], margin: float) -> None:
        """Count one pair; its sides as (tokens, learned tokens)."""
        self.pairs += 1
        for tokens, learned in (chosen, rejected):
            self.tokens += tokens
            self.learned += learned
            self.lengths[length_class(tokens)] += 1
        self.chosen_longer += chosen[1] > rejected[1]
        self.rejected_longer += rejected[1] > chosen[1]
        self.longer_by += chosen[1] - rejected[1]
        self.margins += margin > 0

    def summary(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """As the manifest keeps it, with `counts` of the whole folder.

        `length_bias`: the share of pairs whose better answer is `longer`, whose worse is (`shorter`), and
        by how many learned tokens the better is longer on average.
        """
        pairs = max(1, self.pairs)
        sums = self.to_json()
        bias = {
            "longer": round(sums.pop("chosen_longer") / pairs, 6),
            "shorter": round(sums.pop("rejected_longer") / pairs, 6),
            "tokens": round(sums.pop("longer_by") / pairs, 6),
        }
        return {**sums, **counts, "length_bias": bias}


def summary_lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(topic, text) of what `Statistics.summary` gave, with what can be compared at a glance."""
    pairs = max(1, summary["pairs"])
    tokens, bias = summary["tokens"], summary["length_bias"]
    learned = summary["learned"] / max(1, tokens)
    sizes = histogram(summary["lengths"], 2 * pairs)
    margins = f", {summary['margins']:,} with a margin" if summary["margins"] else ""
    return [
        ("a prompt", f"{pairs / max(1, summary['prompts']):.1f} pairs on average{margins}"),
        ("ties", f"{summary['ties']:,}, from which nothing is learned"),
        ("duplicates", f"{summary['duplicates']:,} ({summary['duplicates'] / pairs:.2%})"),
        ("contradicted", f"{summary['contradictions']:,} pairs were judged either way"),
        ("tokens", f"{tokens:,}, of which learned {summary['learned']:,} ({learned:.0%})"),
        ("lengths", f"{tokens / (2 * pairs):.0f} tokens a side on average; {sizes}"),
        (
            "length bias",
            f"the better answer is longer in {bias['longer']:.0%} of the pairs and shorter in "
            f"{bias['shorter']:.0%}; {bias['tokens']:+.1f} tokens on average",
        ),
    ]
