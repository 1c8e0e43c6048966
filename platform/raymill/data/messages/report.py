"""What preparations of messages say, and tokens as the model will see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.text import Text

from raymill.data.store.manifest import PreparedData, read_tokenizer
from raymill.data.store.shards import row_groups
from raymill.data.text.report import say
from raymill.data.text.steps import causes_text
from raymill.data.text.unit import UnitResult

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QUARANTINE_NAME = "quarantine.jsonl"
LEARNED, GIVEN, SPECIAL = "bold green", "", "dim"

Segment = tuple[list[int], list[float]]  # ids, and what learning each weighs


def say_figures(
    prepared: PreparedData,
    results: Sequence[UnitResult],
    seconds: float,
    figures: Sequence[tuple[str, str]],
    warnings: Sequence[str] = (),
) -> None:
    """Print (topic, text) of a finished preparation, and what was bad, and where it lies."""
    manifest = prepared.manifest
    bad = manifest.bad_inputs
    lines = [
        *figures,
        ("bad", f"{bad.count:,}{causes_text(results)}"),
        *(
            ("unused", f"{name}, in {count:,} records: nothing reads it")
            for name, count in unused_keys(results).items()
        ),
        *(("warning", text) for text in warnings),
        ("folder", f"{prepared.folder} (manifest {manifest.digest[:12]})"),
    ]
    if bad.count:
        quarantine = prepared.folder / QUARANTINE_NAME
        lines.append(("quarantine", f"{quarantine}, the first: {bad.examples[0]}"))
    say(f"Prepared in {seconds:.1f} s")
    for name, text in lines:
        say(f"  {name:<14}{text}")


def unused_keys(results: Sequence[UnitResult]) -> dict[str, int]:
    """Return what records hold and nobody read: its name → the records that hold it, most first."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.facts["unused"])
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def prepared_tokenizer(prepared: PreparedData) -> Tokenizer:
    """The tokenizer that wrote a prepared folder's ids."""
    return read_tokenizer(prepared.tokenizer_folder / "tokenizer.json")


def say_legend(console: Console) -> None:
    """What the colours of a preview mean."""
    console.print(
        Text.assemble(
            "\nAs the model sees them: ", ("learned", LEARNED), ", given, ", ("control", SPECIAL)
        )
    )


def training_rows(prepared: PreparedData) -> Iterator[list[Segment]]:
    """The training rows in the order they lie in, each cut into its segments."""
    manifest = prepared.manifest
    for shard in manifest.splits["train"].shards:
        path = prepared.shard_path(shard)
        for rows in row_groups(path, shard, manifest.dtype, manifest.kind):
            for row in range(len(rows)):
                length = int(rows.length[row])
                ids = rows.tokens[row, :length]
                weight = np.zeros(length) if rows.weight is None else rows.weight[row, :length]
                segment = np.zeros(length) if rows.segment is None else rows.segment[row, :length]
                cuts = np.flatnonzero(np.diff(segment)) + 1
                parts = zip(np.split(ids, cuts), np.split(weight, cuts), strict=True)
                yield [(one.tolist(), weighed.tolist()) for one, weighed in parts]


def colored(tokenizer: Tokenizer, ids: Sequence[int], weight: Sequence[float]) -> Text:
    """Tokens one after the other, each in the colour of what happens to it.

    Where there are no colours, what is learned stands between ⟦ and ⟧.
    """
    special = {
        index: token.content
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    text = Text()
    run: list[int] = []
    learned_before = False

    def flush() -> None:
        words = tokenizer.decode(run, skip_special_tokens=False)
        text.append(words, style=LEARNED if learned_before else GIVEN)
        run.clear()

    for index, loss in zip(ids, weight, strict=True):
        learned = bool(loss > 0)
        if learned != learned_before or index in special:
            flush()
        if learned != learned_before:
            text.append("⟦" if learned else "⟧", style=SPECIAL)
        learned_before = learned
        if index in special:
            text.append(special[index], style=f"{LEARNED} dim" if learned else SPECIAL)
        else:
            run.append(index)
    flush()
    if learned_before:
        text.append("⟧", style=SPECIAL)
    return text
