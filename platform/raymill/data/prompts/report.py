"""What a preparation of prompts says, and the prompts as the model will be asked them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from rich.console import Console
from rich.text import Text

from raymill.data.messages.report import SPECIAL, colored, prepared_tokenizer, say_figures
from raymill.data.prompts.metadata import PromptRecord, book_prompts
from raymill.data.prompts.statistics import Statistics
from raymill.data.store.manifest import PreparedData
from raymill.data.store.shards import row_groups
from raymill.data.text.unit import UnitResult


def summarise(prepared: PreparedData, results: Sequence[UnitResult], seconds: float) -> None:
    """Print the figures of a finished preparation."""
    facts = prepared.manifest.prompts
    assert facts is not None
    statistics = facts.statistics
    train, held_out = (Statistics.total([statistics[split]]) for split in ("train", "validation"))
    records = sum(result.records for result in results)
    figures = [
        (
            "prompts",
            f"{train.prompts:,} to train on, {held_out.prompts:,} held out, of {records:,} records",
        ),
        *train.lines(statistics["duplicates"]),
    ]
    leaked = statistics["leaked"]
    warnings = [f"{leaked:,} prompts stand on both sides"] if leaked else []
    say_figures(prepared, results, seconds, figures, warnings)


def preview(prepared: PreparedData, count: int, console: Console | None = None) -> None:
    """Print the first `count` training prompts from the shards themselves, and what judges the answers."""
    console = console or Console(highlight=False)
    tokenizer = prepared_tokenizer(prepared)
    rows = list(islice(_training_prompts(prepared), count))
    book = _looked_up(prepared, {record for record, _ in rows})
    console.print(Text.assemble("\nAs the model is asked them: given, ", ("control", SPECIAL)))
    for number, (record, ids) in enumerate(rows, 1):
        prompt = book[record]
        judged = f"judged by {prompt.verifier}" if prompt.verifier else "no verifier"
        console.rule(Text(f"{number}: {len(ids)} tokens, {judged}"), align="left")
        console.print(colored(tokenizer, ids, [0.0] * len(ids)), soft_wrap=True)
        reference = "no reference answer" if prompt.answer is None else prompt.answer
        console.print(Text.assemble(("→ ", SPECIAL), reference), soft_wrap=True)


def _training_prompts(prepared: PreparedData) -> Iterator[tuple[int, list[int]]]:
    """(record, ids) of the training rows in the order they lie in."""
    manifest = prepared.manifest
    for shard in manifest.splits["train"].shards:
        path = prepared.shard_path(shard)
        for rows in row_groups(path, shard, manifest.dtype, manifest.kind):
            assert rows.record is not None  # the kind's rows have numbers
            for row, record in enumerate(rows.record.tolist()):
                yield record, rows.tokens[row, : rows.length[row]].tolist()


def _looked_up(prepared: PreparedData, wanted: set[int]) -> dict[int, PromptRecord]:
    """What the book says of these prompts, without holding all of it."""
    facts = prepared.manifest.prompts
    assert facts is not None
    every = book_prompts(prepared.folder / facts.book)
    found = (prompt for prompt in every if prompt.record in wanted)
    return {prompt.record: prompt for prompt in islice(found, len(wanted))}
