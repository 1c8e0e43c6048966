"""The kind "chat": conversations, packed whole into rows that say which tokens are learned.

Legend: T sequence length; a row holds at most T + 1 tokens, of several conversations one after another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from rich.console import Console

from raymill.data.chat.pack import efficiency, pack
from raymill.data.chat.questions import (
    QUESTIONS_NAME,
    Question,
    lowest,
    question_of,
    read_questions,
    write_questions,
)
from raymill.data.messages.conversation import Conversation, read_conversation
from raymill.data.messages.encode import EncodedChat
from raymill.data.messages.formats import COLUMNS, SHARED_COLUMNS
from raymill.data.messages.kind import MessageKind, count_repeated, total_statistics
from raymill.data.messages.problems import Problem
from raymill.data.messages.records import MessageParser, ParsedRecord, Ways
from raymill.data.messages.report import (
    colored,
    prepared_tokenizer,
    say_legend,
    training_rows,
    unused_keys,
)
from raymill.data.messages.thinking import Thinking
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.messages.unit import (
    MessageRow,
    MessageSettings,
    MessageUnit,
    RowSegment,
    statistics_by_split,
    text_digest,
)
from raymill.data.sources.counters import Counters, histogram, length_class
from raymill.data.sources.inputs import Unit
from raymill.data.store.facts import ChatFacts
from raymill.data.store.manifest import DataManifest, PreparedData
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.text.unit import UNITS_FOLDER, UnitResult
from raymill.durable import sha256_file
from raymill.schema.data_sections import ChatConfig

if TYPE_CHECKING:
    from raymill.data.demo.stdlib_conversations import ConversationEntry


@dataclass(frozen=True, kw_only=True)
class ChatParser(MessageParser[Conversation]):
    """Parse records as conversations."""

    format: str | None = None  # None: detected from each record's columns

    noun = "a conversation"
    other_columns = SHARED_COLUMNS

    def parse(self, record: Mapping[str, object]) -> Conversation | Problem:
        return read_conversation(record, self.format)

    def embedded(
        self, entry: ConversationEntry
    ) -> tuple[Conversation | Problem, Mapping[str, object]]:
        return read_conversation(entry.record, "messages"), entry.record

    @property
    def formats(self) -> Mapping[str, Ways]:
        return {self.format: COLUMNS[self.format]} if self.format else COLUMNS

    def kept_record(self, value: Conversation, record: dict[str, object]) -> Mapping[str, object]:
        # A quarantined conversation is shown as it was understood, whatever the format of its record.
        return {"messages": list(value.messages)}


@dataclass(frozen=True, kw_only=True)
class ChatSettings(MessageSettings):
    """Settings that all units of conversations share."""

    reading: ChatParser
    train_on: Literal["all", "last"]
    thinking: Thinking
    overlong: Literal["cut", "refuse"]
    packing: bool
    pack_window: int
    questions: int

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Parse, encode, pack and write a unit."""
        return ChatUnit(index, unit, self).run()


@dataclass
class ChatStatistics(Counters):
    """Sums over conversations; histograms are by the power of two that is at least the length."""

    conversations: int = 0
    turns: Counter[str] = field(default_factory=Counter)  # messages by role
    characters: Counter[str] = field(default_factory=Counter)  # of content, by role
    tokens: int = 0  # of whole conversations
    learned: int = 0
    lengths: Counter[str] = field(default_factory=Counter)  # conversations by tokens
    cut: int = 0  # conversations whose last turns were left off
    weighted: int = 0  # conversations with a weight other than 1

    def add(self, conversation: Conversation, tokens: int, learned: int, cut: bool) -> None:
        """Count one conversation."""
        self.conversations += 1
        for message in conversation.messages:
            self.turns[message["role"]] += 1
            self.characters[message["role"]] += len(message["content"])
        self.tokens += tokens
        self.learned += learned
        self.lengths[length_class(tokens)] += 1
        self.cut += cut
        self.weighted += conversation.weight != 1.0

    def lines(self, duplicates: int) -> list[tuple[str, str]]:
        """Return (topic, text) with shares that can be compared at a glance."""
        count = max(1, self.conversations)
        # Empty statistics are printed too, so nothing is divided by 0.
        characters = max(1, sum(self.characters.values()))
        roles = ", ".join(
            f"{role} {turns:,} ({self.characters[role] / characters:.0%} of the text)"
            for role, turns in sorted(self.turns.items())
        )
        learned = self.learned / max(1, self.tokens)
        mean = self.tokens / count
        return [
            ("turns", f"{sum(self.turns.values()) / count:.1f} per conversation; {roles}"),
            ("tokens", f"{self.tokens:,}, of which learned {self.learned:,} ({learned:.0%})"),
            ("lengths", f"{mean:.0f} tokens on average; {histogram(self.lengths, count)}"),
            ("cut", f"{self.cut:,} conversations ({self.cut / count:.2%}) lost turns at the end"),
            ("duplicates", f"{duplicates:,} ({duplicates / count:.2%})"),
        ]


class FittedChat(NamedTuple):
    """A conversation that fits into a row, encoded; `cut`: it lost turns at its end."""

    conversation: Conversation
    chat: EncodedChat
    cut: bool


class ChatUnit(MessageUnit[Conversation, FittedChat, RowSegment]):
    """A unit of conversations, held in memory together, since packing chooses among many.

    `data.shard_input_bytes` bounds that memory.
    """

    kind = "chat"
    _settings: ChatSettings

    def __init__(self, index: int, unit: Unit, settings: ChatSettings) -> None:
        super().__init__(index, unit, settings, settings.reading)
        self._questions: list[Question] = []
        self._statistics = {split: ChatStatistics() for split in (TRAIN, VALIDATION)}
        self._digests: list[str] = []

    def encode(self, values: Sequence[Conversation]) -> Iterator[FittedChat | Problem]:
        for conversation, chat in zip(values, self._encoded(values), strict=True):
            if isinstance(chat, Problem):
                yield chat
            # Only conversations that are too long are encoded again, without their last turns.
            elif len(chat.ids) > self._settings.capacity:
                yield self._cut(conversation, len(chat.ids))
            else:
                yield FittedChat(conversation, chat, cut=False)

    def add(self, record: ParsedRecord[Conversation], encoded: FittedChat) -> None:
        conversation, chat, cut = encoded
        weight = np.where(chat.learned, np.float32(conversation.weight), np.float32(0))
        learned_bytes = int(chat.token_bytes[chat.learned].sum())
        self._collect(record.split, RowSegment(chat.ids, weight, learned_bytes))
        self._statistics[record.split].add(
            conversation, len(chat.ids), int(chat.learned.sum()), cut
        )
        # Repeated conversations can only be counted over all units, by digests of their tokens.
        self._digests.append(text_digest(record.split, chat.ids))
        question = question_of(
            conversation, chat, self._encoder.end_of_turn_id, record.split, self._settings.seed
        )
        # Training questions are always kept, since baselines are fitted on them.
        if question is not None and (self._settings.questions or record.split == TRAIN):
            self._questions.append(question)

    def arrange(self, split: str, collected: Sequence[RowSegment]) -> Iterator[MessageRow]:
        rows = pack(
            np.array([len(segment.ids) for segment in collected]),
            self._settings.capacity,
            self._settings.pack_window,
            self._key(split),
            self._settings.packing,
        )
        return (MessageRow([collected[number] for number in row]) for row in rows)

    def facts(self) -> Mapping[str, object]:
        path = unit_questions_path(Path(self._settings.folder), self._index)
        write_questions(path, lowest(self._questions, self._settings.questions))
        return {"statistics": statistics_by_split(self._statistics), "digests": self._digests}

    def _encoded(self, conversations: Sequence[Conversation]) -> list[EncodedChat | Problem]:
        settings = self._settings
        return self._encoder.encode(conversations, settings.train_on, settings.thinking)

    def _cut(self, conversation: Conversation, tokens: int) -> FittedChat | Problem:
        """Find by bisection the longest beginning that fits and ends with an answer that is learned."""
        capacity = self._settings.capacity
        # A beginning that ends with a turn of weight 0 would teach nothing at its end, so it isn't
        # tried.
        ends = [
            number
            for number, message in enumerate(conversation.messages[:-1], 1)
            if message["role"] == "assistant"
            and number > conversation.prompt_length
            and message.get("weight") != 0
        ]
        fitting: FittedChat | None = None
        # Longer beginnings have more tokens, so the longest one that fits is found by bisection.
        low, high = 0, len(ends) if self._settings.overlong == "cut" else 0
        while low < high:
            middle = (low + high) // 2
            shorter = replace(conversation, messages=conversation.messages[: ends[middle]])
            [chat] = self._encoded([shorter])
            if not isinstance(chat, Problem) and len(chat.ids) <= capacity:
                fitting, low = FittedChat(shorter, chat, cut=True), middle + 1
            else:
                high = middle
        if fitting is not None:
            return fitting
        return Problem(
            "over_long",
            f"{tokens} tokens, more than the {capacity} of a row, and no beginning of whole turns fits",
        )


def unit_questions_path(folder: Path, index: int) -> Path:
    """Return the file of a unit's questions."""
    return folder / UNITS_FOLDER / f"{index:05d}.questions.jsonl"


class ChatKind(MessageKind[ChatConfig, Conversation]):
    """Conversations, for supervised fine-tuning."""

    name = "chat"
    row_noun = "conversation"
    plural = description = "conversations"

    def parser(self, data: ChatConfig, fraction: float, seed: int) -> ChatParser:
        return ChatParser(
            format=None if data.format == "auto" else data.format,
            group_column=data.validation.group_column,
            fraction=fraction,
            seed=seed,
        )

    def settings(
        self, data: ChatConfig, tokenizer: ChatTokenizer, folder: Path, seed: int
    ) -> ChatSettings:
        return ChatSettings(
            folder=str(folder),
            reading=self.parser(data, data.validation.fraction, seed),
            tokenizer=tokenizer.identity,
            template_sha256=tokenizer.template_sha256,
            sequence_length=data.sequence_length,
            row_group_rows=data.row_group_rows,
            train_on=data.train_on,
            thinking=data.thinking,
            overlong=data.overlong,
            packing=data.packing,
            pack_window=data.pack_window,
            questions=data.questions,
            seed=seed,
        )

    def facts(
        self,
        data: ChatConfig,
        tokenizer: ChatTokenizer,
        folder: Path,
        results: Sequence[UnitResult],
        manifest: DataManifest,
    ) -> Mapping[str, ChatFacts]:
        questions = (
            question
            for result in results
            for question in read_questions(unit_questions_path(folder, result.index))
        )
        # Units kept more questions than needed, as none of them knows the ranks in the others.
        write_questions(folder / QUESTIONS_NAME, lowest(questions, data.questions))
        statistics = total_statistics(ChatStatistics, results)
        train, rows = statistics[TRAIN], manifest.splits[TRAIN].rows
        facts = ChatFacts(
            template_sha256=tokenizer.template_sha256,
            end_of_turn_id=tokenizer.end_of_turn_id,
            conversations=train.conversations,
            learned_tokens=train.learned,
            packing=round(efficiency(rows, train.tokens, data.sequence_length + 1), 6),
            questions=QUESTIONS_NAME,
            questions_sha256=sha256_file(folder / QUESTIONS_NAME),
            statistics={
                **statistics_by_split(statistics),
                **count_repeated(results),
                "unused": unused_keys(results),
            },
        )
        return {self.name: facts}

    def embedded_source(self, data: ChatConfig) -> str | None:
        return None if data.source == "chat" else data.source

    def figures(self, prepared: PreparedData, records: int) -> list[tuple[str, str]]:
        manifest, chat = prepared.manifest, _facts(prepared)
        train, held_out = (
            ChatStatistics.total([chat.statistics[split]]) for split in (TRAIN, VALIDATION)
        )
        rows = manifest.splits[TRAIN].rows
        return [
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
        ]

    def leaked(self, prepared: PreparedData) -> str | None:
        count = _facts(prepared).statistics["leaked"]
        return f"{count:,} conversations" if count else None

    def preview(self, prepared: PreparedData, count: int, console: Console | None = None) -> None:
        console = console or Console(highlight=False)
        tokenizer = prepared_tokenizer(prepared)
        say_legend(console)
        # A row holds several conversations, which are shown one by one.
        conversations = (chat for row in training_rows(prepared) for chat in row)
        for number, (ids, weight) in zip(range(1, count + 1), conversations, strict=False):
            learned = sum(w > 0 for w in weight)
            console.rule(f"{number}: {len(ids)} tokens, {learned} learned", align="left")
            console.print(colored(tokenizer, ids, weight), soft_wrap=True)


def _facts(prepared: PreparedData) -> ChatFacts:
    facts = prepared.manifest.chat
    assert facts is not None, f"{prepared.folder} holds conversations"
    return facts
