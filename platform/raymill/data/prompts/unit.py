"""One unit of prompts: read, check, encode, and write at most one shard a split, and its part of the book.

What can't be used goes to a quarantine file beside the sidecar, with its place and cause.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raymill.data.messages.problems import Problem
from raymill.data.messages.unit import (
    MessagesSettings,
    RecordReader,
    record_number,
    text_digest,
    unit_encoder,
)
from raymill.data.prompts.metadata import PromptRecord, write_book
from raymill.data.prompts.prompt import Prompt
from raymill.data.prompts.records import PlacedPrompt, PromptsReading
from raymill.data.prompts.rows import EncodedPrompt, row_groups
from raymill.data.prompts.statistics import Statistics
from raymill.data.store.manifest import Shard
from raymill.data.store.order import random_permutation
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.text.records import Bad
from raymill.data.text.sources import Unit
from raymill.data.text.unit import UNITS_FOLDER, UnitResult
from raymill.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PromptsSettings(MessagesSettings):
    """What every unit of prompts shares."""

    reading: PromptsReading

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Read, encode and write."""
        return _PromptsWork(index, unit, self).run()


def unit_book_path(folder: Path, index: int) -> Path:
    """Where a unit's part of the book is kept."""
    return folder / UNITS_FOLDER / f"{index:05d}.prompts.jsonl"


class _PromptsWork:
    """The counters and prompts of a running unit."""

    def __init__(self, index: int, unit: Unit, settings: PromptsSettings) -> None:
        self._index, self._settings = index, settings
        self._encoder = unit_encoder(settings.folder, settings.template_sha256)
        self._intake = RecordReader(index, unit, settings.reading)
        self._rows: dict[str, list[EncodedPrompt]] = {}
        self._book: list[PromptRecord] = []
        self._statistics = {split: Statistics() for split in (TRAIN, VALIDATION)}
        self._digests: list[str] = []

    def run(self) -> UnitResult:
        for placed in self._intake.usable():
            ids = self._encoded(placed.prompt)
            if isinstance(ids, Problem):
                self._intake.refuse(
                    Bad(placed.where, ids.why, cause=ids.cause, record=placed.record)
                )
            else:
                self._add(placed, np.array(ids, dtype=np.uint32))
        folder = Path(self._settings.folder)
        shards = {split: self._write(split) for split in sorted(self._rows)}
        (folder / UNITS_FOLDER).mkdir(exist_ok=True)
        facts = {
            "statistics": {split: found.to_json() for split, found in self._statistics.items()},
            "digests": self._digests,
            "book_sha256": write_book(unit_book_path(folder, self._index), self._book),
        }
        return self._intake.finish(folder, shards, len(self._book), facts)

    def _encoded(self, prompt: Prompt) -> list[int] | Problem:
        try:
            ids = self._encoder.prompt_ids(prompt.messages, prompt.tools)
        except DataError as error:
            return Problem("encoding", str(error))
        if not ids:
            return Problem("encoding", "the chat template writes nothing")
        if len(ids) > self._settings.capacity:
            why = f"{len(ids)} tokens, more than the {self._settings.capacity} of a row"
            return Problem("over_long", why)
        return ids

    def _add(self, placed: PlacedPrompt, ids: NDArray[np.uint32]) -> None:
        prompt, split = placed.prompt, placed.split
        number = record_number(self._index, len(self._book))
        said = sum(len(message["content"].encode()) for message in prompt.messages)
        self._rows.setdefault(split, []).append(EncodedPrompt(ids, said, number))
        self._book.append(
            PromptRecord(
                record=number,
                split=split,
                messages=prompt.messages,
                answer=prompt.answer,
                verifier=prompt.verifier,
                extra=prompt.extra,
                tools=prompt.tools,
                id=prompt.id,
            )
        )
        self._statistics[split].add(prompt, len(ids))
        self._digests.append(text_digest(split, ids))

    def _write(self, split: str) -> Shard:
        settings, rows = self._settings, self._rows[split]
        # Prompts on one topic would otherwise lie side by side, and the first held-out rows be of few.
        order = random_permutation(len(rows), settings.key(self._index, split))
        groups = row_groups(
            [rows[place] for place in order],
            group_rows=settings.row_group_rows,
            dtype=settings.dtype,
        )
        return settings.write_shard(self._index, split, "prompts", groups)
