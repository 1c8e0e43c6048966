"""Statistics of pairs: counts that add up over units, and the lines that report them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymill.data.sources.counters import Counters, histogram, length_class


@dataclass
class PreferenceStatistics(Counters):
    """Sums over pairs; histograms are by the power of two that is at least the length."""

    comparisons: int = 0  # records
    pairs: int = 0
    ties: int = 0  # pairs of answers judged equal, from which nothing is learned
    tokens: int = 0  # of both answers, prompts included
    learned: int = 0
    chosen_longer: int = 0  # pairs whose better answer has more learned tokens
    rejected_longer: int = 0
    longer_by: int = 0  # learned tokens of the better answers, less those of the worse
    margins: int = 0  # pairs with a known margin
    weighted: int = 0  # comparisons with a weight other than 1
    lengths: Counter[str] = field(default_factory=Counter)  # answers with their prompts, by tokens

    def add(self, chosen: tuple[int, int], rejected: tuple[int, int], margin: float) -> None:
        """Count one pair; both answers as (tokens, learned tokens)."""
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
        """Return the statistics as the manifest keeps them, with `counts` of the whole folder.

        `length_bias` holds the share of pairs whose better answer is longer (`longer`) or shorter (`shorter`),
        and the mean difference in learned tokens (`tokens`).
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
    """Return (topic, text) of a `PreferenceStatistics.summary`."""
    pairs = max(1, summary["pairs"])
    tokens, bias = summary["tokens"], summary["length_bias"]
    learned = summary["learned"] / max(1, tokens)
    sizes = histogram(summary["lengths"], 2 * pairs)
    margins = f", {summary['margins']:,} with a margin" if summary["margins"] else ""
    return [
        ("per prompt", f"{pairs / max(1, summary['prompts']):.1f} pairs on average{margins}"),
        ("ties", f"{summary['ties']:,}, from which nothing is learned"),
        ("duplicates", f"{summary['duplicates']:,} ({summary['duplicates'] / pairs:.2%})"),
        ("contradicted", f"{summary['contradictions']:,} pairs were judged both ways"),
        ("tokens", f"{tokens:,}, of which learned {summary['learned']:,} ({learned:.0%})"),
        ("lengths", f"{tokens / (2 * pairs):.0f} tokens per answer on average; {sizes}"),
        (
            "length bias",
            f"the better answer is longer in {bias['longer']:.0%} of the pairs and shorter in "
            f"{bias['shorter']:.0%}; {bias['tokens']:+.1f} tokens on average",
        ),
    ]


def agreement_text(agreement: Mapping[str, float | None] | None) -> str:
    """Return a sentence about how far annotators agree, from `judgments.agreement`."""
    if agreement is None:
        return "unknown: no pair was judged by two named annotators"
    alpha = agreement["alpha"]
    text = "undefined (all judge alike)" if alpha is None else f"{alpha:.3f}"
    return (
        f"Krippendorff's alpha {text}, over {agreement['pairs']:,} pairs of answers that several of "
        f"{agreement['annotators']:,} annotators judged"
    )
