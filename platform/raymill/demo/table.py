"""The demonstration's end in words: one table, a line a stage; questions; what it can be asked."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raymill.demo.figures import STAGES, Figures, Shown

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
class Line:
    """What a stage did: a figure before and after, in plain words."""

    stage: str
    what: str
    before: str
    after: str
    yardstick: str = ""


def lines(figures: Figures, summaries: dict[str, Any], gzip: float | None) -> Iterator[Line]:
    """The table. `summaries`: the runs' own, by stage of the pipeline."""
    if (found := summaries.get("pretrain")) is not None:
        value = found["figures"]
        yield Line(
            "base",
            "bits per byte of held-out library text",
            f"{value['eval/bits_per_byte/before']:.2f}",
            f"{value['eval/bits_per_byte']:.3f}",
            "" if gzip is None else f"gzip -9 {gzip:.3f}",
        )
    if figures.functions is not None:
        yield Line(
            "",
            f"of {len(figures.functions.functions)} functions it writes, Python reads",
            "",
            f"{figures.functions.parsed:.0%}",
            f"longest copy of training text {len(figures.functions.copied)} characters",
        )
    for number, kind in enumerate(figures.kinds):
        if "sft" in kind.right:
            best = max(kind.baselines, key=lambda name: kind.baselines[name])
            yield Line(
                "" if number else "fine-tuned",
                f"right: {kind.name}, {kind.count} held-out questions",
                f"{kind.right.get('pretrained', 0):.0%}",
                f"{kind.right['sft']:.0%}",
                f"{best} {kind.baselines[best]:.0%}",
            )
    if figures.honesty is not None and "sft" in figures.honesty.f1:
        honesty = figures.honesty
        yield Line(
            "",
            "names in its answer the very thing it was asked about",
            f"{honesty.named.get('pretrained', 0):.0%}",
            f"{honesty.named['sft']:.0%}",
        )
        spelling = f"spelling {honesty.spelling:.2f}, " if honesty.spelling is not None else ""
        yield Line(
            "",
            "declines names that don't exist (F1)",
            f"{honesty.f1.get('pretrained', 0):.2f}",
            f"{honesty.f1['sft']:.2f}",
            f"{spelling}refusing all {honesty.everything:.2f}; declines {honesty.false_refusals['sft']:.0%} "
            "of real names",
        )
    if (found := summaries.get("reward")) is not None:
        value = found["figures"]
        yield Line(
            "reward",
            "held-out pairs ranked as the rule ranks them",
            f"{value['pairs/reward/accuracy/before']:.0%}",
            f"{value['pairs/reward/accuracy']:.0%}",
            "a coin 50%",
        )
    if figures.gain is not None:
        gain = figures.gain
        mean, low, high = gain.interval
        counts = {
            stage: ", ".join(
                f"{100 * found.get(v, 0) / max(sum(found.values()), 1):.0f}% {v}"
                for v in ("right", "declined", "wrong")
            )
            for stage, found in gain.verdicts.items()
        }
        yield Line(
            "aligned",
            "points by the rule (right 1, declined 0.3, wrong 0)",
            f"{gain.before:.3f}",
            f"{gain.after:.3f}",
            f"gain {mean:+.3f} ({low:+.3f} to {high:+.3f}), {gain.share:.0%} of what the best of 8 would gain",
        )
        yield Line("", "before: " + counts["sft"], "", "")
        yield Line("", "after:  " + counts["aligned"], "", "")


def printed(table: list[Line]) -> str:
    """As text, in columns."""
    stage = max(len(line.stage) for line in table)
    what = max(len(line.what) for line in table)
    return "\n".join(
        f"{line.stage:<{stage}}  {line.what:<{what}}  {line.before:>6} {'→' if line.after else ' '} "
        f"{line.after:<6} {line.yardstick}".rstrip()
        for line in table
    )


def conversation(shown: Shown) -> str:
    """A question with what each stage answers."""
    rows = [("expected", shown.expected)]
    rows += [(f"@{stage}", shown.answers[stage]) for stage in STAGES if stage in shown.answers]
    answers = "\n".join(
        f"  {name:<12} {textwrap.shorten(text, WIDTH - 15) or '(nothing)'}" for name, text in rows
    )
    return f"you> {shown.question}\n{answers}"


def examples() -> str:
    """What the assistant can be asked."""
    return "\n".join(f"  {what:<10} {question}" for what, question in EXAMPLES)
