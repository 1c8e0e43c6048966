"""Text of the demonstration's results: a table with the figures of each stage, and example questions."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from raymill.demo.figures import STAGES, Example, Figures
from raymill.report.page import RunSummary

WIDTH = 118
EXAMPLES = (
    ("arguments", "Which argument of `load(path, mode=1, size=64)` comes last?"),
    ("defaults", "What is the default of `size` in `load(path, mode=1, size=64)`?"),
    ("counting", "How many arguments does `load(path, mode=1, size=64)` take?"),
    ("spelling", "Spell s-t-o-n-e backwards."),
    ("numbers", "What is 37 + 48?  Which is larger, 482 or 467?"),
    ("names", "What does gzip.open do?  What does json.sqrt do?"),
)


@dataclass(frozen=True)
class Row:
    """Figure of a stage, before and after it, with a value for comparison."""

    stage: str
    figure: str
    before: str
    after: str
    comparison: str = ""


def rows(
    figures: Figures, summaries: Mapping[str, RunSummary], gzip: float | None
) -> Iterator[Row]:
    """Yield the rows of the table; `summaries` are keyed by the pipeline's stage."""
    if (summary := summaries.get("pretrain")) is not None:
        value = summary["figures"]
        yield Row(
            "base",
            "bits per byte of held-out library text",
            f"{value['eval/bits_per_byte/before']:.2f}",
            f"{value['eval/bits_per_byte']:.3f}",
            "" if gzip is None else f"gzip -9 {gzip:.3f}",
        )
    if figures.functions is not None:
        yield Row(
            "",
            f"valid Python, of {len(figures.functions.functions)} functions that it writes",
            "",
            f"{figures.functions.parsed:.0%}",
            f"longest copy of training text {len(figures.functions.copied)} characters",
        )
    for number, kind in enumerate(figures.kinds):
        if "sft" in kind.right:
            # A model is only as good as its lead over the strongest baseline.
            best = max(kind.baselines, key=lambda name: kind.baselines[name])
            yield Row(
                "" if number else "fine-tuned",
                f"right: {kind.name}, {kind.count} held-out questions",
                f"{kind.right.get('pretrained', 0):.0%}",
                f"{kind.right['sft']:.0%}",
                f"{best} {kind.baselines[best]:.0%}",
            )
    if figures.honesty is not None and "sft" in figures.honesty.f1:
        honesty = figures.honesty
        yield Row(
            "",
            "answers that contain the name in question",
            f"{honesty.named.get('pretrained', 0):.0%}",
            f"{honesty.named['sft']:.0%}",
        )
        spelling = f"spelling {honesty.spelling:.2f}, " if honesty.spelling is not None else ""
        yield Row(
            "",
            "declines names that don't exist (F1)",
            f"{honesty.f1.get('pretrained', 0):.2f}",
            f"{honesty.f1['sft']:.2f}",
            f"{spelling}declining always {honesty.everything:.2f}; declines "
            f"{honesty.false_refusals['sft']:.0%} of real names",
        )
    # A random ranking of pairs is right in half of the cases.
    if (summary := summaries.get("reward")) is not None:
        value = summary["figures"]
        yield Row(
            "reward",
            "held-out pairs ranked as by the reward rule",
            f"{value['pairs/reward/accuracy/before']:.0%}",
            f"{value['pairs/reward/accuracy']:.0%}",
            "chance 50%",
        )
    if figures.gain is not None:
        gain = figures.gain
        mean, low, high = gain.interval
        counts = {
            stage: ", ".join(
                f"{100 * verdicts.get(v, 0) / max(sum(verdicts.values()), 1):.0f}% {v}"
                for v in ("right", "declined", "wrong")
            )
            for stage, verdicts in gain.verdicts.items()
        }
        yield Row(
            "aligned",
            "points of the reward rule (right 1, declined 0.3, wrong 0)",
            f"{gain.before:.3f}",
            f"{gain.after:.3f}",
            f"gain {mean:+.3f} ({low:+.3f} to {high:+.3f}), {gain.share:.0%} of the gain of best-of-8",
        )
        yield Row("", "before: " + counts["sft"], "", "")
        yield Row("", "after:  " + counts["aligned"], "", "")


def table_text(table: list[Row]) -> str:
    """Format the table as text in aligned columns."""
    stage = max(len(row.stage) for row in table)
    figure = max(len(row.figure) for row in table)
    return "\n".join(
        f"{row.stage:<{stage}}  {row.figure:<{figure}}  {row.before:>6} {'→' if row.after else ' '} "
        f"{row.after:<6} {row.comparison}".rstrip()
        for row in table
    )


def example_text(example: Example) -> str:
    """Format a question with the answers of the stages."""
    named = [("expected", example.expected)]
    named += [(f"@{stage}", example.answers[stage]) for stage in STAGES if stage in example.answers]
    answers = "\n".join(
        f"  {name:<12} {textwrap.shorten(text, WIDTH - 15) or '(nothing)'}" for name, text in named
    )
    return f"you> {example.question}\n{answers}"


def examples() -> str:
    """List example questions that the assistant can answer."""
    return "\n".join(f"  {topic:<10} {question}" for topic, question in EXAMPLES)
