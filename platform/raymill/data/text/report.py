"""What a preparation says: one moving line on a terminal, plain lines elsewhere, then a summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

from raymill.data.store.manifest import Prepared
from raymill.data.text.sources import EMBEDDED, Unit
from raymill.data.text.unit import UnitResult
from raymill.progress_line import ProgressLine

PLAIN_EVERY_S = 5.0
LISTED = 8  # endings of files that are passed over
MEASURED_BYTES = 10_000  # of input; below, progress in megabytes says nothing


class Progress:
    """Counts finished units: `[3/12 units] 24.1 of 96.3 MB, 7.0M tokens, 2.1 MB/s, 34 s left`."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._progress_line = ProgressLine(PLAIN_EVERY_S, patient=True)
        self._units = len(units)
        self._bytes = sum(piece.length for unit in units for piece in unit)
        self._started = time.monotonic()
        self._done = self._earlier = self._read = self._read_earlier = self._tokens = 0

    def __enter__(self) -> Self:
        self._progress_line.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress_line.__exit__(kind, error, trace)
        if self._earlier and kind is None:
            self._progress_line.say(
                f"{self._earlier} of {self._units} units were finished by an earlier try."
            )

    def done(self, result: UnitResult, *, earlier: bool) -> None:
        """Count one unit; `earlier`: it was found finished."""
        self._done += 1
        self._read += result.bytes_read
        self._tokens += sum(shard.tokens for shard in result.shards.values())
        if earlier:
            self._earlier += 1
            self._read_earlier += result.bytes_read
        self._progress_line.show(self._line(time.monotonic()))

    def _line(self, now: float) -> str:
        tokens = f"{self._tokens / 1e6:.1f}M tokens"
        if self._bytes < MEASURED_BYTES:  # made, not read
            return f"[{self._done}/{self._units} units] {tokens}"
        rate = (self._read - self._read_earlier) / max(now - self._started, 1e-9)
        left = f", {(self._bytes - self._read) / rate:.0f} s left" if rate else ""
        return (
            f"[{self._done}/{self._units} units] {self._read / 1e6:.1f} of "
            f"{self._bytes / 1e6:.1f} MB, {tokens}, {rate / 1e6:.1f} "
            f"MB/s{left}"
        )


def planned(units: Sequence[Unit], passed_over: Counter[str]) -> str:
    """Say how much there is to read, and how many files, by ending, are passed over."""
    pieces = [piece for unit in units for piece in unit]
    if all(piece.format == EMBEDDED for piece in pieces):
        return "conversations about this Python's functions"
    megabytes = sum(piece.length for piece in pieces) / 1e6
    names = len({piece.name for piece in pieces})
    inputs = f"{names:,} inputs ({megabytes:.1f} MB) in {len(units):,} units"
    return f"{inputs}{_listed(passed_over)}"


def _listed(passed_over: Counter[str]) -> str:
    """`, passing over 3,849 files (3,800 .html, 40 .log, 9 without an ending)`, or nothing."""
    if not passed_over:
        return ""
    most = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
    parts = [f"{count:,} {ending or 'without an ending'}" for ending, count in most]
    if left := passed_over.total() - sum(count for _, count in most):
        parts.append(f"{left:,} with others")
    return f", passing over {passed_over.total():,} files ({', '.join(parts)})"


def announce(folder: Path, units: Sequence[Unit], passed_over: Counter[str]) -> None:
    """Say what is about to happen and where."""
    say(f"Preparing {planned(units, passed_over)} → {folder}")


def announce_existing(prepared: Prepared) -> None:
    """Say that there is nothing to do."""
    shards = sum(len(split.shards) for split in prepared.manifest.splits.values())
    say(
        f"Already prepared: {prepared.folder} (manifest {prepared.manifest.digest[:12]}; its "
        f"{shards} shards and its inputs are unchanged)."
    )


def summarise(prepared: Prepared, results: Sequence[UnitResult], seconds: float) -> None:
    """Print the figures of a finished preparation."""
    manifest = prepared.manifest
    train, held_out = manifest.splits["train"], manifest.splits["validation"]
    text_bytes = train.bytes + held_out.bytes
    tokens = train.tokens + held_out.tokens
    records = sum(result.records for result in results)
    contamination = manifest.contamination
    assert contamination is not None  # of text it is always measured
    bad = manifest.bad_inputs
    first_bad = f", the first: {bad.examples[0]}" if bad.examples else ""
    vocabulary = f"a vocabulary of {manifest.tokenizer.vocab_size:,} ({manifest.dtype})"
    rate = f"{text_bytes / max(tokens, 1):.2f} bytes a token"
    of_records = f"{manifest.documents:,} of {records:,} records"
    grams = f"held-out {contamination.unit} {contamination.n}-grams"
    figures = {
        "documents": f"{of_records}, {text_bytes / 1e6:.2f} MB of text",
        "tokens": f"{tokens:,} of {vocabulary}, {rate}",
        "rows": f"{train.rows:,} train, {held_out.rows:,} held out, {manifest.sequence_length} "
        "tokens each",
        "held out": f"{held_out.bytes / max(text_bytes, 1):.2%} of the text",
        "contamination": f"{contamination.share:.2%} of {grams} occur in training",
        "bad inputs": f"{bad.count:,}{first_bad}",
        "folder": f"{prepared.folder} (manifest {manifest.digest[:12]})",
    }
    say(f"Prepared in {seconds:.1f} s")
    for name, text in figures.items():
        say(f"  {name:<14}{text}")


def say(text: str) -> None:
    """A plain line."""
    # A long path must stay one line that can be copied.
    Console().print(escape(text), soft_wrap=True, highlight=False)
