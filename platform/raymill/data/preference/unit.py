"""One unit of comparisons: read, check, encode, and write at most one shard of pairs a split.

A prompt counts once, however many pairs were made of its answers: their weights are shared out over them.
That is done within a unit and side, since units are independent of one another: data whose pairs of one prompt
lie far apart is best sorted by prompt, so that they fall into one unit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from raymill.data.messages.encode import EncodedChat
from raymill.data.messages.problems import Problem
from raymill.data.messages.thinking import Thinking
from raymill.data.messages.unit import (
    BATCH,
    MessagesSettings,
    RecordReader,
    record_number,
    unit_encoder,
)
from raymill.data.preference.judgements import hash64, judgement, to_text
from raymill.data.preference.records import PreferenceReading, PreferenceRecord
from raymill.data.preference.rows import Side, SidePair, row_groups
from raymill.data.preference.statistics import Statistics
from raymill.data.store.manifest import Shard
from raymill.data.store.order import random_permutation
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.text.records import Bad
from raymill.data.text.sources import Unit
from raymill.data.text.unit import UnitResult


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings(MessagesSettings):
    """What every unit of comparisons shares."""

    reading: PreferenceReading
    thinking: Thinking
    row_predictions: int  # of both sides; sequence_length is of one

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Read, encode and write."""
        return _PreferenceWork(index, unit, self).run()


class _PreferenceWork:
    """The counters and pairs of a running unit."""

    def __init__(self, index: int, unit: Unit, settings: PreferenceSettings) -> None:
        self._index, self._settings = index, settings
        self._encoder = unit_encoder(settings.folder, settings.template_sha256)
        self._intake = RecordReader(index, unit, settings.reading)
        self._pairs: dict[str, list[tuple[int, SidePair]]] = {}  # split → (prompt's hash, pair)
        self._statistics = {split: Statistics() for split in (TRAIN, VALIDATION)}
        self._judged: dict[str, list[tuple[int, int, int, int]]] = {TRAIN: [], VALIDATION: []}
        self._numbered = 0

    def run(self) -> UnitResult:
        records = self._intake.usable()
        while batch := list(islice(records, BATCH)):
            self._encode(batch)
        shards = {split: self._write(split) for split in sorted(self._pairs)}
        facts = {
            "statistics": {split: found.to_json() for split, found in self._statistics.items()},
            "judgements": {split: to_text(judged) for split, judged in self._judged.items()},
        }
        pairs = sum(map(len, self._pairs.values()))
        return self._intake.finish(Path(self._settings.folder), shards, pairs, facts)

    def _encode(self, records: Sequence[PreferenceRecord]) -> None:
        answers = [answer for record in records for answer in record.comparison.answers]
        # The turns of the prompt are given: templates that rewrite them don't matter.
        encoded = iter(self._encoder.encode(answers, "all", self._settings.thinking))
        for record in records:
            self._take(record, list(islice(encoded, len(record.comparison.answers))))

    def _take(self, record: PreferenceRecord, chats: Sequence[EncodedChat | Problem]) -> None:
        comparison, settings = record.comparison, self._settings
        sides = []
        for chat, name in zip(chats, comparison.names, strict=True):
            if not isinstance(chat, Problem) and len(chat.ids) > settings.capacity:
                why = f"{len(chat.ids)} tokens with its prompt, more than the {settings.capacity} of a side"
                chat = Problem("over_long", why)
            if isinstance(chat, Problem):
                self._refuse(record, Problem(chat.cause, f"{name}: {chat.why}"))
                return
            sides.append(Side.of(chat))
        for pair in comparison.pairs:
            if sides[pair.better].digest == sides[pair.worse].digest:
                names = f"{comparison.names[pair.better]} and {comparison.names[pair.worse]}"
                self._refuse(record, Problem("same", f"{names} are the same answer"))
                return
        self._add(record, sides)

    def _refuse(self, record: PreferenceRecord, problem: Problem) -> None:
        self._intake.refuse(
            Bad(record.where, problem.why, cause=problem.cause, record=record.record)
        )

    def _add(self, record: PreferenceRecord, sides: Sequence[Side]) -> None:
        comparison, split = record.comparison, record.split
        statistics, prompt = self._statistics[split], hash64(comparison.prompt_key.encode())
        statistics.comparisons += 1
        statistics.ties += len(comparison.ties)
        statistics.weighted += comparison.weight != 1.0
        judged = [(pair.better, pair.worse, False) for pair in comparison.pairs]
        judged += [(one, other, True) for one, other in comparison.ties]
        self._judged[split] += [
            judgement(sides[one].digest, sides[other].digest, tie, prompt, comparison.annotator)
            for one, other, tie in judged
            if sides[one].digest != sides[other].digest
        ]
        for pair in comparison.pairs:
            chosen, rejected = sides[pair.better], sides[pair.worse]
            statistics.add(chosen.size, rejected.size, pair.margin)
            number = record_number(self._index, self._numbered)
            self._numbered += 1
            one = SidePair(chosen, rejected, number, comparison.weight, pair.margin)
            self._pairs.setdefault(split, []).append((prompt, one))

    def _write(self, split: str) -> Shard:
        settings, pairs = self._settings, self._pairs[split]
        of_prompt = Counter(prompt for prompt, _ in pairs)
        weighed = [replace(pair, weight=pair.weight / of_prompt[prompt]) for prompt, pair in pairs]
        # Pairs of one prompt would otherwise lie side by side, and in one row group.
        order = random_permutation(len(pairs), settings.key(self._index, split))
        groups = row_groups(
            [weighed[place] for place in order],
            group_rows=settings.row_group_rows,
            dtype=settings.dtype,
        )
        return settings.write_shard(
            self._index, split, "preference", groups, settings.row_predictions
        )
