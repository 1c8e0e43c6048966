"""The kind "prompts": a row is one prompt, up to where the assistant begins.

References, verifiers and all else that reward functions need are in a file of metadata next to the rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from raymill.data.messages.kind import MessageKind, count_repeated, total_statistics
from raymill.data.messages.problems import Problem
from raymill.data.messages.records import MessageParser, ParsedRecord, Ways
from raymill.data.messages.report import SPECIAL, colored, prepared_tokenizer, unused_keys
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.messages.unit import (
    MessageRow,
    MessageSettings,
    MessageUnit,
    RowSegment,
    statistics_by_split,
    text_digest,
)
from raymill.data.prompts.metadata import (
    METADATA_NAME,
    PromptRecord,
    iterate_metadata,
    merge_metadata,
    write_metadata,
)
from raymill.data.prompts.prompt import COLUMNS, OTHER_COLUMNS, Prompt, read_prompt
from raymill.data.sources.counters import Counters, histogram, length_class
from raymill.data.sources.inputs import Unit
from raymill.data.store.facts import PromptsFacts
from raymill.data.store.manifest import DataManifest, PreparedData
from raymill.data.store.shards import row_groups
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.text.unit import UNITS_FOLDER, UnitResult
from raymill.errors import DataError
from raymill.schema.data_sections import PromptsConfig

if TYPE_CHECKING:
    from raymill.data.demo.stdlib_conversations import ConversationEntry

NO_VERIFIER = "none"
EMBEDDED_VERIFIER = "answer_f1"  # of the embedded prompts, where data.verifier is none


@dataclass(frozen=True, kw_only=True)
class PromptParser(MessageParser[Prompt]):
    """Parse records as prompts, each with the verifier that it names itself, or else the configured one."""

    verifier: str = NO_VERIFIER  # of prompts that name none themselves

    noun = "a prompt"
    other_columns = OTHER_COLUMNS

    def parse(self, record: Mapping[str, object]) -> Prompt | Problem:
        prompt = read_prompt(record)
        if isinstance(prompt, Problem):
            return prompt
        # The name "none" switches scoring off, also against the configured verifier.
        name = prompt.verifier or self.verifier
        return replace(prompt, verifier=None if name == NO_VERIFIER else name)

    def embedded(self, entry: ConversationEntry) -> tuple[Prompt | Problem, Mapping[str, object]]:
        verifier = EMBEDDED_VERIFIER if self.verifier == NO_VERIFIER else self.verifier
        record = {
            **entry.record, "verifier": verifier, "about": entry.name, "kind": entry.kind,
        }  # fmt: skip
        return read_prompt(record), record

    @property
    def formats(self) -> Mapping[str, Ways]:
        return {name: ((name,),) for name in COLUMNS}


@dataclass(frozen=True, kw_only=True)
class PromptSettings(MessageSettings):
    """Settings that all units of prompts share."""

    reading: PromptParser

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Parse, encode and write a unit."""
        return PromptUnit(index, unit, self).run()


@dataclass
class PromptStatistics(Counters):
    """Sums over prompts; histograms are by the power of two that is at least the length."""

    prompts: int = 0
    tokens: int = 0  # with the beginning of the assistant's turn
    lengths: Counter[str] = field(default_factory=Counter)  # prompts by tokens
    turns: Counter[str] = field(default_factory=Counter)  # messages by role
    tools: int = 0  # prompts in which tools may be called
    verifiers: Counter[str] = field(default_factory=Counter)  # prompts by verifier
    answered: Counter[str] = field(default_factory=Counter)  # those with a reference answer

    def add(self, prompt: Prompt, tokens: int) -> None:
        """Count one prompt."""
        self.prompts += 1
        self.tokens += tokens
        self.lengths[length_class(tokens)] += 1
        self.turns.update(message["role"] for message in prompt.messages)
        self.tools += prompt.tools is not None
        verifier = prompt.verifier or NO_VERIFIER
        self.verifiers[verifier] += 1
        self.answered[verifier] += prompt.answer is not None

    def lines(self, duplicates: int) -> list[tuple[str, str]]:
        """Return (topic, text) with shares that can be compared at a glance."""
        count = max(1, self.prompts)
        roles = ", ".join(f"{role} {turns:,}" for role, turns in sorted(self.turns.items()))
        tools = f"; {self.tools:,} with tools" if self.tools else ""
        verifiers = ", ".join(
            f"{name} {number:,}{self._without_answer(name)}"
            for name, number in sorted(self.verifiers.items())
        )
        answered, mean = self.answered.total(), self.tokens / count
        return [
            ("turns", f"{self.turns.total() / count:.1f} per prompt; {roles}{tools}"),
            ("tokens", f"{self.tokens:,}"),
            ("lengths", f"{mean:.0f} tokens on average; {histogram(self.lengths, count)}"),
            ("answers", f"{answered:,} prompts ({answered / count:.0%}) have a reference"),
            ("verifiers", verifiers),
            ("duplicates", f"{duplicates:,} ({duplicates / count:.2%})"),
        ]

    def _without_answer(self, verifier: str) -> str:
        missing = self.verifiers[verifier] - self.answered[verifier]
        return f" ({missing:,} without a reference)" if missing and verifier != NO_VERIFIER else ""


class EncodedPrompt(NamedTuple):
    """A prompt's ids [n] up to where the assistant begins, the bytes of its messages, and its number."""

    ids: NDArray[np.uint32]
    text_bytes: int
    record: int


class PromptUnit(MessageUnit[Prompt, NDArray[np.uint32], EncodedPrompt]):
    """A unit of prompts."""

    kind = "prompts"
    # Prompts are encoded one by one, so a batch gains nothing, and quarantined records stay in input order.
    batch_records = 1
    _settings: PromptSettings

    def __init__(self, index: int, unit: Unit, settings: PromptSettings) -> None:
        super().__init__(index, unit, settings, settings.reading)
        self._metadata: list[PromptRecord] = []
        self._statistics = {split: PromptStatistics() for split in (TRAIN, VALIDATION)}
        self._digests: list[str] = []

    def encode(self, values: Sequence[Prompt]) -> Iterator[NDArray[np.uint32] | Problem]:
        capacity = self._settings.capacity
        for prompt in values:
            try:
                ids = self._encoder.prompt_ids(prompt.messages, prompt.tools)
            except DataError as error:
                yield Problem("encoding", str(error))
                continue
            if not ids:
                yield Problem("encoding", "the chat template writes nothing")
            elif len(ids) > capacity:
                yield Problem("over_long", f"{len(ids)} tokens, more than the {capacity} of a row")
            else:
                yield np.array(ids, dtype=np.uint32)

    def add(self, record: ParsedRecord[Prompt], encoded: NDArray[np.uint32]) -> None:
        prompt, split, number = record.value, record.split, self._next_number()
        # Only the messages' own text counts, not the template's.
        text_bytes = sum(len(message["content"].encode()) for message in prompt.messages)
        self._collect(split, EncodedPrompt(encoded, text_bytes, number))
        self._metadata.append(
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
        self._statistics[split].add(prompt, len(encoded))
        self._digests.append(text_digest(split, encoded))

    def arrange(self, split: str, collected: Sequence[EncodedPrompt]) -> Iterator[MessageRow]:
        for ids, text_bytes, number in self._shuffled(split, collected):
            yield MessageRow((RowSegment(ids, None, text_bytes),), {"record": number})

    def facts(self) -> Mapping[str, object]:
        path = unit_metadata_path(Path(self._settings.folder), self._index)
        return {
            "statistics": statistics_by_split(self._statistics),
            "digests": self._digests,
            "book_sha256": write_metadata(path, self._metadata),
        }


def unit_metadata_path(folder: Path, index: int) -> Path:
    """Return the file of a unit's prompt metadata."""
    return folder / UNITS_FOLDER / f"{index:05d}.prompts.jsonl"


class PromptKind(MessageKind[PromptsConfig, Prompt]):
    """Prompts, for reinforcement learning."""

    name = "prompts"
    row_noun = "prompt"
    plural = description = "prompts"

    def parser(self, data: PromptsConfig, fraction: float, seed: int) -> PromptParser:
        return PromptParser(
            verifier=data.verifier,
            group_column=data.validation.group_column,
            fraction=fraction,
            seed=seed,
        )

    def settings(
        self, data: PromptsConfig, tokenizer: ChatTokenizer, folder: Path, seed: int
    ) -> PromptSettings:
        return PromptSettings(
            folder=str(folder),
            reading=self.parser(data, data.validation.fraction, seed),
            tokenizer=tokenizer.identity,
            template_sha256=tokenizer.template_sha256,
            sequence_length=data.sequence_length,
            row_group_rows=data.row_group_rows,
            seed=seed,
        )

    def facts(
        self,
        data: PromptsConfig,
        tokenizer: ChatTokenizer,
        folder: Path,
        results: Sequence[UnitResult],
        manifest: DataManifest,
    ) -> Mapping[str, PromptsFacts]:
        parts = [
            (unit_metadata_path(folder, result.index), result.facts["book_sha256"])
            for result in results
        ]
        statistics = total_statistics(PromptStatistics, results)
        facts = PromptsFacts(
            template_sha256=tokenizer.template_sha256,
            end_of_turn_id=tokenizer.end_of_turn_id,
            prompts=statistics[TRAIN].prompts,
            book=METADATA_NAME,
            book_sha256=merge_metadata(parts, folder / METADATA_NAME),
            statistics={
                **statistics_by_split(statistics),
                **count_repeated(results),
                "unused": unused_keys(results),
            },
        )
        return {self.name: facts}

    def embedded_source(self, data: PromptsConfig) -> str | None:
        # The embedded prompts are those of the embedded conversations.
        return None if data.source == "prompts" else data.source.replace("prompts", "chat")

    def figures(self, prepared: PreparedData, records: int) -> list[tuple[str, str]]:
        statistics = _facts(prepared).statistics
        train, held_out = (
            PromptStatistics.total([statistics[split]]) for split in (TRAIN, VALIDATION)
        )
        return [
            (
                "prompts",
                f"{train.prompts:,} to train on, {held_out.prompts:,} held out, of {records:,} "
                "records",
            ),
            *train.lines(statistics["duplicates"]),
        ]

    def leaked(self, prepared: PreparedData) -> str | None:
        count = _facts(prepared).statistics["leaked"]
        return f"{count:,} prompts" if count else None

    def preview(self, prepared: PreparedData, count: int, console: Console | None = None) -> None:
        console = console or Console(highlight=False)
        tokenizer = prepared_tokenizer(prepared)
        rows = list(islice(_training_prompts(prepared), count))
        metadata = _find_metadata(prepared, {record for record, _ in rows})
        console.print(Text.assemble("\nAs the model is prompted: text, ", ("control", SPECIAL)))
        for number, (record, ids) in enumerate(rows, 1):
            prompt = metadata[record]
            verifier = f"judged by {prompt.verifier}" if prompt.verifier else "no verifier"
            console.rule(Text(f"{number}: {len(ids)} tokens, {verifier}"), align="left")
            console.print(colored(tokenizer, ids, [0.0] * len(ids)), soft_wrap=True)
            reference = "no reference answer" if prompt.answer is None else prompt.answer
            console.print(Text.assemble(("→ ", SPECIAL), reference), soft_wrap=True)


def _facts(prepared: PreparedData) -> PromptsFacts:
    facts = prepared.manifest.prompts
    assert facts is not None, f"{prepared.folder} holds prompts"
    return facts


def _training_prompts(prepared: PreparedData) -> Iterator[tuple[int, list[int]]]:
    """Yield (record, ids) of the training rows in the order in which they are stored."""
    manifest = prepared.manifest
    for shard in manifest.splits[TRAIN].shards:
        path = prepared.shard_path(shard)
        for rows in row_groups(path, shard, manifest.dtype, manifest.kind):
            assert rows.record is not None, "rows of prompts have a record number"
            for row, record in enumerate(rows.record.tolist()):
                yield record, rows.tokens[row, : rows.length[row]].tolist()


def _find_metadata(prepared: PreparedData, records: set[int]) -> dict[int, PromptRecord]:
    """Return these prompts' metadata, without holding all of the file in memory."""
    # The file may be larger than memory, so only the wanted prompts are kept.
    every = iterate_metadata(prepared.folder / _facts(prepared).book)
    wanted = (prompt for prompt in every if prompt.record in records)
    return {prompt.record: prompt for prompt in islice(wanted, len(records))}
