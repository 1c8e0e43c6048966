"""What a preparation of preferences says, and the pairs as the model will see them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from raymill.data.messages.report import (
    Segment,
    colored,
    prepared_tokenizer,
    say_figures,
    say_legend,
    training_rows,
)
from raymill.data.preference.statistics import summary_lines
from raymill.data.store.manifest import PreparedData
from raymill.data.text.unit import UnitResult


def summarise(prepared: PreparedData, results: Sequence[UnitResult], seconds: float) -> None:
    """Print the figures of a finished preparation."""
    manifest, preference = prepared.manifest, prepared.manifest.preference
    assert preference is not None
    statistics = preference.statistics
    train, held_out = statistics["train"], statistics["validation"]
    records = sum(result.records for result in results)
    figures = [
        (
            "pairs",
            f"{train['pairs']:,} of {train['prompts']:,} prompts to train on, "
            f"{held_out['pairs']:,} of {held_out['prompts']:,} held out, of {records:,} records",
        ),
        *summary_lines(train),
        ("agreement", _agreement_text(statistics["agreement"])),
        (
            "rows",
            f"{manifest.splits['train'].rows:,} of 2 × {(manifest.sequence_length + 1) // 2:,} "
            "tokens at most",
        ),
    ]
    leaked = statistics["leaked"]
    warnings = [f"{leaked:,} prompts stand on both sides"] if leaked else []
    say_figures(prepared, results, seconds, figures, warnings)


def preview(prepared: PreparedData, count: int, console: Console | None = None) -> None:
    """Print the first `count` training pairs from the shards themselves."""
    console = console or Console(highlight=False)
    tokenizer = prepared_tokenizer(prepared)
    say_legend(console)
    for number, row in zip(range(1, count + 1), training_rows(prepared), strict=False):
        tokens = " and ".join(str(len(ids)) for ids, _ in row)
        learned = " and ".join(str(sum(w > 0 for w in weight)) for _, weight in row)
        weight = max(w for _, weights in row for w in weights)
        console.rule(
            f"{number}: {tokens} tokens, {learned} learned, weight {weight:.3g}", align="left"
        )
        for name, (ids, weights) in _parts(row):
            console.print(Text(name, style="bold underline"))
            console.print(colored(tokenizer, ids, weights), soft_wrap=True)


def _parts(row: Sequence[Segment]) -> list[tuple[str, Segment]]:
    """The prompt once, then the answers; both sides whole, where a template wrote two prompts."""
    starts = [next(n for n, w in enumerate(weight) if w > 0) for _, weight in row]
    named = [("chosen", row[0]), ("rejected", row[1])]
    prompts = [ids[:start] for (ids, _), start in zip(row, starts, strict=True)]
    if prompts[0] != prompts[1]:
        return named
    return [
        ("prompt", (prompts[0], [0.0] * starts[0])),
        *(
            (name, (ids[start:], weight[start:]))
            for (name, (ids, weight)), start in zip(named, starts, strict=True)
        ),
    ]


def _agreement_text(found: dict[str, float | None] | None) -> str:
    if found is None:
        return "unknown: no pair was judged by two named annotators"
    alpha = "undefined (all judge alike)" if found["alpha"] is None else f"{found['alpha']:.3f}"
    return (
        f"Krippendorff's alpha {alpha}, over {found['pairs']:,} pairs of answers that several of "
        f"{found['annotators']:,} annotators judged"
    )
