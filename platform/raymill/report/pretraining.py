"""Report of a pretraining run: bits per byte, compared with baselines, and sampled text."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from raymill.data.store.location import source_names
from raymill.data.store.manifest import PreparedData
from raymill.errors import DataError
from raymill.evaluate.baselines import Baselines, baselines
from raymill.reading import read_json
from raymill.report.page import Card, Column, FinishedRun, Tile, by_source, sample_files

COLUMNS = (
    Column("held-out loss", "eval/loss", ".4f"),
    Column("perplexity", "eval/perplexity", ",.1f"),
    Column("bits per byte", "eval/bits_per_byte", ".4f"),
)


def pretraining_card(run: FinishedRun) -> Card:
    """Return the parts of the report that are specific to pretraining."""
    figures = run.summary["figures"]
    before, after = figures["eval/bits_per_byte/before"], figures["eval/bits_per_byte"]
    headlines = [f"held out: {before:.4f} bits per byte before training, {after:.4f} after"]
    tiles = [Tile(f"{after:.3f}", "bits per byte, held out", True), Tile(f"{before:.3f}", "before")]
    columns = list(COLUMNS)
    if len(run.prepared) == 1:
        known_baselines = _baselines_or_none(run.prepared[0])
        headlines += (
            [] if known_baselines is None else [f"          {_baselines_text(known_baselines)}"]
        )
        tiles += [] if known_baselines is None else _baseline_tiles(known_baselines)
    else:
        headlines[0] += f", the weighted mean of {len(run.prepared)} sources"
        for name, data in zip(source_names(run.prepared), run.prepared, strict=True):
            figure = f"eval/{name}/bits_per_byte"
            columns.append(Column(f"{name}, bits per byte", figure, ".4f"))
            known_baselines = _baselines_or_none(data)
            comparison = "" if known_baselines is None else f"; {_baselines_text(known_baselines)}"
            headlines.append(f"          {name} {_change(figures, figure)}{comparison}")
    return Card(
        tuple(headlines), tuple(tiles), tuple(columns), (_samples(run.folder),), by_source(run.prepared, _data),
        ("chat", "model"),
    )  # fmt: skip


def _change(figures: dict[str, float], name: str) -> str:
    """Format a figure before → after; a resumed run may lack the value before."""
    before = figures.get(f"{name}/before", math.nan)
    return f"{before:.4f} → {figures.get(name, math.nan):.4f}"


def _baselines_text(known: Baselines) -> str:
    return f"byte trigram {known.byte_trigram:.4f}, gzip -9 {known.gzip:.4f}, xz -9 {known.xz:.4f}"


def _baseline_tiles(known: Baselines) -> list[Tile]:
    return [
        Tile(f"{known.byte_trigram:.3f}", "byte trigram, same training text"),
        Tile(f"{known.gzip:.3f}", "gzip -9"),
        Tile(f"{known.xz:.3f}", "xz -9"),
    ]


def _baselines_or_none(prepared: PreparedData) -> Baselines | None:
    try:
        return baselines(prepared)
    except DataError:
        # Byte baselines need the original text, which some tokenizers can't reproduce.
        return None


def _samples(run_dir: Path) -> str:
    files = sample_files(run_dir, "step")
    if not files:
        return ""
    # The first and the last samples show the progress; those in between would only make the page longer.
    shown = [files[0], files[-1]] if len(files) > 1 else files
    parts = ["<h2>Samples</h2>"]
    for path in shown:
        step = int(path.stem.removeprefix("step-"))
        parts.append(f"<p class=sub>after step {step:,} (the prompt is in color)</p>")
        for sample in read_json(path):
            parts.append(f"<pre><em>{escape(sample['prompt'])}</em>{escape(sample['text'])}</pre>")
    return "\n".join(parts)


def _data(prepared: PreparedData) -> tuple[tuple[str, str], ...]:
    manifest = prepared.manifest
    train, held_out = manifest.splits["train"], manifest.splits["validation"]
    contamination = manifest.contamination
    assert contamination is not None, "contamination is measured for every text corpus"
    return (
        ("training text", f"{train.bytes:,} bytes, {train.tokens:,} tokens"),
        ("held-out text", f"{held_out.bytes:,} bytes, {held_out.tokens:,} tokens"),
        (
            "contamination",
            f"{contamination.share:.2%} of held-out {contamination.unit} {contamination.n}-grams "
            "occur in the training text",
        ),
        (
            "tokenizer",
            f"{manifest.tokenizer.vocab_size:,} ({manifest.tokenizer.fingerprint[:16]}…)",
        ),
    )
