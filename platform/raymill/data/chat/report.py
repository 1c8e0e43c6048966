"""What a preparation of conversations says, and the conversations as the model will see them."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from raymill.data.chat.statistics import Statistics
from raymill.data.messages.report import (
    colored,
    prepared_tokenizer,
    say_figures,
    say_legend,
    training_rows,
)
from raymill.data.store.manifest import PreparedData
from raymill.data.text.unit import UnitResult


def summarise(prepared: PreparedData, results: Sequence[UnitResult], seconds: float) -> None:
    """Print the figures of a finished preparation."""
    manifest, chat = prepared.manifest, prepared.manifest.chat
    assert chat is not None
    train, held_out = (
        Statistics.total([chat.statistics[split]]) for split in ("train", "validation")
    )
    records = sum(result.records for result in results)
    rows = manifest.splits["train"].rows
    figures = [
        (
            "conversations",
            f"{train.conversations:,} to train on, {held_out.conversations:,} held out, of "
            f"{records:,} records",
        ),
        *train.lines(chat.statistics["duplicates"]),
        (
            "rows",
            f"{rows:,} of {manifest.sequence_length:,} tokens, {train.conversations / rows:.1f} "
            f"conversations each, {chat.packing:.1%} filled",
        ),
    ]
    leaked = chat.statistics["leaked"]
    warnings = [f"{leaked:,} conversations stand on both sides"] if leaked else []
    say_figures(prepared, results, seconds, figures, warnings)


def preview(prepared: PreparedData, count: int, console: Console | None = None) -> None:
    """Print the first `count` training conversations from the shards themselves."""
    console = console or Console(highlight=False)
    tokenizer = prepared_tokenizer(prepared)
    say_legend(console)
    conversations = (chat for row in training_rows(prepared) for chat in row)
    for number, (ids, weight) in zip(range(1, count + 1), conversations, strict=False):
        learned = sum(w > 0 for w in weight)
        console.rule(f"{number}: {len(ids)} tokens, {learned} learned", align="left")
        console.print(colored(tokenizer, ids, weight), soft_wrap=True)
