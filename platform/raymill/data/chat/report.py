"""What a preparation of conversations says, and the conversations as the model will see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from raymill.data.chat.statistics import Statistics
from raymill.data.manifest import Prepared
from raymill.data.prepare_report import say
from raymill.data.prepare_steps import causes_text
from raymill.data.shards import row_groups
from raymill.data.unit import UnitResult

QUARANTINE_NAME = "quarantine.jsonl"
LEARNED, GIVEN, SPECIAL = "bold green", "", "dim"


def summarise(prepared: Prepared, results: Sequence[UnitResult], seconds: float) -> None:
    """Print the figures of a finished preparation."""
    manifest, chat = prepared.manifest, prepared.manifest.chat
    assert chat is not None
    train, held_out = (
        Statistics.total([chat.statistics[split]]) for split in ("train", "validation")
    )
    records = sum(result.records for result in results)
    bad = manifest.bad_inputs
    rows = manifest.splits["train"].rows
    say(f"Prepared in {seconds:.1f} s")
    leaked = chat.statistics["leaked"]
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
        ("bad", f"{bad.count:,}{causes_text(results)}"),
        ("folder", f"{prepared.folder} (manifest {manifest.digest[:12]})"),
    ]
    if leaked:
        figures.insert(-1, ("warning", f"{leaked:,} conversations stand on both sides"))
    for name, text in figures:
        say(f"  {name:<14}{text}")
    if bad.count:
        say(
            f"  {'quarantine':<14}{prepared.folder / QUARANTINE_NAME}, the first: {bad.examples[0]}"
        )


def preview(prepared: Prepared, count: int, console: Console | None = None) -> None:
    """Print the first `count` training conversations from the shards themselves."""
    from tokenizers import Tokenizer

    console = console or Console(highlight=False)
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_folder / "tokenizer.json"))
    console.print(
        Text.assemble(
            "\nAs the model sees them: ", ("learned", LEARNED), ", given, ", ("control", SPECIAL)
        )
    )
    for number, (ids, weight) in zip(range(1, count + 1), _conversations(prepared), strict=False):
        learned = sum(w > 0 for w in weight)
        console.rule(f"{number}: {len(ids)} tokens, {learned} learned", align="left")
        console.print(colored(tokenizer, ids, weight), soft_wrap=True)


def colored(tokenizer: object, ids: Sequence[int], weight: Sequence[float]) -> Text:
    """Tokens one after the other, each in the colour of what happens to it.

    Where there are no colours, what is learned stands between ⟦ and ⟧.
    """
    special = {
        index: token.content
        for index, token in tokenizer.get_added_tokens_decoder().items()  # type: ignore[attr-defined]
        if token.special
    }
    text = Text()
    run: list[int] = []
    learned_before = False

    def flush() -> None:
        words = tokenizer.decode(run, skip_special_tokens=False)  # type: ignore[attr-defined]
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


def _conversations(prepared: Prepared) -> Iterator[tuple[list[int], list[float]]]:
    manifest = prepared.manifest
    for shard in manifest.splits["train"].shards:
        path = prepared.shard_path(shard)
        for rows in row_groups(path, shard, manifest.dtype, manifest.kind):
            assert rows.weight is not None and rows.segment is not None
            for row in range(len(rows)):
                length = int(rows.length[row])
                cuts = np.flatnonzero(np.diff(rows.segment[row, :length])) + 1
                ids = np.split(rows.tokens[row, :length], cuts)
                weights = np.split(rows.weight[row, :length], cuts)
                for one, weight in zip(ids, weights, strict=True):
                    yield one.tolist(), weight.tolist()
