"""Report of a preparation: one moving line on a terminal, plain lines elsewhere, then a summary."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

from raymill.data.sources.inputs import EMBEDDED, Unit
from raymill.data.store.manifest import PreparedData
from raymill.data.text.fertility import fertility_text
from raymill.data.text.live import EVERY_S, live_counts
from raymill.data.text.unit import UnitResult
from raymill.durable import JsonObject
from raymill.errors import StorageError
from raymill.progress_line import MEASURED_BYTES, ProgressLine, rate_text

PLAIN_EVERY_S = 5.0
# Endings of skipped files that are listed.
LISTED = 8


class PreparationProgress:
    """Progress in finished units: `[3/12 units] 24.1 of 96.3 MB, 7.0M tokens, 2.1 MB/s, 34 s
    left`."""

    def __init__(self, units: Sequence[Unit], live: Path | None = None) -> None:
        self._progress_line = ProgressLine(PLAIN_EVERY_S, patient=True)
        self._units = len(units)
        self._bytes = sum(span.length for unit in units for span in unit)
        self._started = time.monotonic()
        # Folder of the running units' notes, which a thread looks at.
        self._live = live
        self._ended = Event()
        self._watcher = Thread(target=self._watch, name="raymill-progress", daemon=True)
        self._done: set[int] = set()
        self._finished = self._earlier = self._bytes_read = self._bytes_earlier = self._tokens = 0

    def __enter__(self) -> Self:
        self._progress_line.__enter__()
        if self._live is not None:
            self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        if self._watcher.is_alive():
            self._watcher.join()
        self._progress_line.__exit__(kind, error, trace)
        if self._earlier and kind is None:
            self._progress_line.say(
                f"{self._earlier} of {self._units} units were finished by an earlier try."
            )

    def done(self, result: UnitResult, *, earlier: bool) -> None:
        """Count one unit; with `earlier`, an earlier try had finished it."""
        self._finished += 1
        self._done.add(result.index)
        self._bytes_read += result.bytes_read
        self._tokens += sum(shard.tokens for shard in result.shards.values())
        # Documents that will be shuffled aren't in shards yet.
        self._tokens += sum(run["tokens"] for run in result.facts.get("runs", ()))
        if earlier:
            self._earlier += 1
            self._bytes_earlier += result.bytes_read
        self._progress_line.show(self._line(time.monotonic()))

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            assert self._live is not None, "the thread is started for it"
            with suppress(StorageError):
                counts = live_counts(self._live)
                running = [count for unit, count in counts.items() if unit not in self._done]
                if running:
                    read, tokens = map(sum, zip(*running, strict=True))
                    self._progress_line.show(self._line(time.monotonic(), read, tokens))

    def _line(self, now: float, running_bytes: int = 0, running_tokens: int = 0) -> str:
        """Describe the progress; of running units by their notes."""
        read = self._bytes_read + running_bytes
        tokens = f"{(self._tokens + running_tokens) / 1e6:.1f}M tokens"
        # Generated conversations have next to no bytes of input.
        if self._bytes < MEASURED_BYTES:
            return f"[{self._finished}/{self._units} units] {tokens}"
        seconds = now - self._started
        rate = rate_text(read, self._bytes, self._bytes_earlier, seconds, f"{tokens}, ")
        return f"[{self._finished}/{self._units} units] {rate}"


def describe_plan(units: Sequence[Unit], passed_over: Counter[str]) -> str:
    """Describe the amount to read, and the number of files that are skipped, by ending."""
    spans = [span for unit in units for span in unit]
    if all(span.format == EMBEDDED for span in spans):
        return "conversations about this Python's functions"
    megabytes = sum(span.length for span in spans) / 1e6
    names = len({span.name for span in spans})
    inputs = f"{names:,} inputs ({megabytes:.1f} MB) in {len(units):,} units"
    return f"{inputs}{_listed(passed_over)}"


def _listed(passed_over: Counter[str]) -> str:
    """Return `, passing over 3,849 files (3,800 .html, 40 .log, 9 without an ending)`, or
    nothing."""
    if not passed_over:
        return ""
    most = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))[:LISTED]
    parts = [f"{count:,} {ending or 'without an ending'}" for ending, count in most]
    if left := passed_over.total() - sum(count for _, count in most):
        parts.append(f"{left:,} with others")
    return f", passing over {passed_over.total():,} files ({', '.join(parts)})"


def announce(folder: Path, units: Sequence[Unit], passed_over: Counter[str]) -> None:
    """Print the plan and the folder."""
    say(f"Preparing {describe_plan(units, passed_over)} → {folder}")


def announce_existing(prepared: PreparedData, in_file_order: bool = False) -> None:
    """Print that the data is prepared already; `in_file_order`: though documents are to be shuffled."""
    shards = sum(len(split.shards) for split in prepared.manifest.splits.values())
    say(
        f"Already prepared: {prepared.folder} (manifest {prepared.manifest.digest[:12]}; its "
        f"{shards} shards and its inputs are unchanged)."
    )
    if in_file_order:
        say(
            "Its documents are in the order of the files; to shuffle them, give the data another "
            "data.name."
        )


def summarize(prepared: PreparedData, results: Sequence[UnitResult], seconds: float) -> None:
    """Print the figures of a finished preparation."""
    manifest = prepared.manifest
    train, held_out = manifest.splits["train"], manifest.splits["validation"]
    text_bytes = train.bytes + held_out.bytes
    tokens = train.tokens + held_out.tokens
    records = sum(result.records for result in results)
    contamination = manifest.contamination
    assert contamination is not None, "contamination is measured for every preparation of text"
    text = manifest.text
    assert text is not None, "text is described by every preparation of it"
    bad = manifest.bad_inputs
    first_bad = f", the first: {bad.examples[0]}" if bad.examples else ""
    vocabulary = f"a vocabulary of {manifest.tokenizer.vocab_size:,} ({manifest.dtype})"
    rate = f"{text_bytes / max(tokens, 1):.2f} bytes per token"
    of_records = f"{manifest.documents:,} of {records:,} records"
    grams = f"held-out {contamination.unit} {contamination.n}-grams"
    figures = {
        "documents": f"{of_records}, {text_bytes / 1e6:.2f} MB of text",
        "tokens": f"{tokens:,} of {vocabulary}, {rate}",
        "fertility": fertility_text(text.fertility),
        "rows": f"{train.rows:,} train, {held_out.rows:,} held out, {manifest.sequence_length} "
        "tokens each",
        "packing": packing_text(text.packing),
        "held out": f"{held_out.bytes / max(text_bytes, 1):.2%} of the text",
        "contamination": f"{contamination.share:.2%} of {grams} occur in training",
        "bad inputs": f"{bad.count:,}{first_bad}",
        **_passed_over(results),
        "folder": f"{prepared.folder} (manifest {manifest.digest[:12]})",
    }
    say(f"Prepared in {seconds:.1f} s")
    for name, figure in figures.items():
        say(f"  {name:<14}{figure}")


def packing_text(packing: JsonObject) -> str:
    """Describe how training documents fit into rows."""
    train = packing["train"]
    documents, positions = max(train["documents"], 1), max(train["positions"], 1)
    return (
        f"{train['cut'] / documents:.1%} of the training documents are cut ({train['longer'] / documents:.1%} "
        f"are longer than a row), {train['predicted'] / positions:.1%} of the positions are filled"
    )


def _passed_over(results: Sequence[UnitResult]) -> dict[str, str]:
    """Return the number of records that are no documents, by the reason; nothing where all are."""
    skipped: Counter[str] = Counter()
    for result in results:
        skipped.update(result.facts.get("skipped", {}))
    listed = ", ".join(f"{count:,} {cause}" for cause, count in skipped.most_common(LISTED))
    return {"passed over": f"{skipped.total():,} ({listed})"} if skipped else {}


def say(text: str) -> None:
    """Print a plain line."""
    # A long path must stay one line that can be copied.
    Console().print(escape(text), soft_wrap=True, highlight=False)
