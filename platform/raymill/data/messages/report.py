"""Reports of preparations of messages: their figures, and tokens shown as the model sees them."""

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
LEARNED, NOT_LEARNED, SPECIAL = "bold green", "", "dim"

StoredSegment = tuple[list[int], list[float]]  # ids, and the loss weight of each


def say_figures(
    prepared: PreparedData,
    results: Sequence[UnitResult],
    seconds: float,
    figures: Sequence[tuple[str, str]],
    warnings: Sequence[str] = (),
) -> None:
    """Print (topic, text) of a finished preparation, its bad records, and its folder."""
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
    # The first bad record is named here, so that its cause is seen without opening the file.
    if bad.count:
        quarantine = prepared.folder / QUARANTINE_NAME
        lines.append(("quarantine", f"{quarantine}, the first: {bad.examples[0]}"))
    say(f"Prepared in {seconds:.1f} s")
    for name, text in lines:
        say(f"  {name:<14}{text}")


def unused_keys(results: Sequence[UnitResult]) -> dict[str, int]:
    """Return the keys that nothing reads, by name, with the number of records that have them, most first."""
    total: Counter[str] = Counter()
    for result in results:
        total.update(result.facts["unused"])
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def prepared_tokenizer(prepared: PreparedData) -> Tokenizer:
    """Return the tokenizer that wrote a prepared folder's ids."""
    return read_tokenizer(prepared.tokenizer_folder / "tokenizer.json")


def say_legend(console: Console) -> None:
    """Print the meaning of the colors of a preview."""
    console.print(
        Text.assemble(
            "\nAs the model sees them: ",
            ("learned", LEARNED),
            ", not learned, ",
            ("control", SPECIAL),
        )
    )


def training_rows(prepared: PreparedData) -> Iterator[list[StoredSegment]]:
    """Yield the training rows in the order in which they are stored, each cut into its segments."""
    manifest = prepared.manifest
    for shard in manifest.splits["train"].shards:
        path = prepared.shard_path(shard)
        for rows in row_groups(path, shard, manifest.dtype, manifest.kind):
            for row in range(len(rows)):
                length = int(rows.length[row])
                ids = rows.tokens[row, :length]
                weight = np.zeros(length) if rows.weight is None else rows.weight[row, :length]
                segment = np.zeros(length) if rows.segment is None else rows.segment[row, :length]
                # A new segment begins where the segment number changes.
                cuts = np.flatnonzero(np.diff(segment)) + 1
                parts = zip(np.split(ids, cuts), np.split(weight, cuts), strict=True)
                yield [(part.tolist(), weights.tolist()) for part, weights in parts]


def colored(tokenizer: Tokenizer, ids: Sequence[int], weight: Sequence[float]) -> Text:
    """Return tokens as text, colored by whether they are learned.

    Learned text also stands between ⟦ and ⟧, for terminals without colors.
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
        text.append(words, style=LEARNED if learned_before else NOT_LEARNED)
        run.clear()

    for index, loss in zip(ids, weight, strict=True):
        learned = bool(loss > 0)
        # Tokens are decoded in runs, since one character may span several tokens.
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
