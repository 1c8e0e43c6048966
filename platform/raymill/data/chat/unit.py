"""One unit of conversations: read, check, encode, pack, and write at most one shard a split.

What can't be used goes to a quarantine file beside the sidecar, with its place and cause. A unit's
conversations are in memory together (`data.shard_input_bytes` bounds them), since packing chooses among many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from raymill.data.chat.pack import pack
from raymill.data.chat.questions import Question, lowest, question_of, write_questions
from raymill.data.chat.records import ChatReading, ChatRecord
from raymill.data.chat.rows import Weighed, row_groups
from raymill.data.chat.statistics import Statistics
from raymill.data.messages.conversation import Conversation, Problem
from raymill.data.messages.encode import EncodedChat
from raymill.data.messages.thinking import Thinking
from raymill.data.messages.unit import (
    BATCH,
    MessagesSettings,
    RecordReader,
    text_digest,
    unit_encoder,
)
from raymill.data.store.manifest import Shard
from raymill.data.store.split import TRAIN
from raymill.data.text.records import Bad
from raymill.data.text.sources import Unit
from raymill.data.text.unit import UNITS_FOLDER, UnitResult


@dataclass(frozen=True, kw_only=True)
class ChatSettings(MessagesSettings):
    """What every unit of conversations shares."""

    reading: ChatReading
    train_on: Literal["all", "last"]
    thinking: Thinking
    overlong: Literal["cut", "refuse"]
    packing: bool
    pack_window: int
    questions: int

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Read, encode, pack and write."""
        return _ChatWork(index, unit, self).run()


def unit_questions_path(folder: Path, index: int) -> Path:
    """Where a unit's questions are kept."""
    return folder / UNITS_FOLDER / f"{index:05d}.questions.jsonl"


class _ChatWork:
    """The counters and conversations of a running unit."""

    def __init__(self, index: int, unit: Unit, settings: ChatSettings) -> None:
        self._index, self._settings = index, settings
        self._encoder = unit_encoder(settings.folder, settings.template_sha256)
        self._intake = RecordReader(index, unit, settings.reading)
        self._chats: dict[str, list[Weighed]] = {}
        self._questions: list[Question] = []
        self._statistics = {"train": Statistics(), "validation": Statistics()}
        self._digests: list[str] = []

    def run(self) -> UnitResult:
        records = self._intake.usable()
        while batch := list(islice(records, BATCH)):
            self._encode(batch)
        folder = Path(self._settings.folder)
        shards = {split: self._write(split) for split in sorted(self._chats)}
        kept = lowest(self._questions, self._settings.questions)
        (folder / UNITS_FOLDER).mkdir(exist_ok=True)
        write_questions(unit_questions_path(folder, self._index), kept)
        facts = {
            "statistics": {split: found.to_json() for split, found in self._statistics.items()},
            "digests": self._digests,
        }
        return self._intake.finish(folder, shards, sum(map(len, self._chats.values())), facts)

    def _encode(self, records: Sequence[ChatRecord]) -> None:
        conversations = [record.conversation for record in records]
        for record, chat in zip(records, self._encoded(conversations), strict=True):
            self._take(record, chat)

    def _encoded(self, conversations: Sequence[Conversation]) -> list[EncodedChat | Problem]:
        settings = self._settings
        return self._encoder.encode(conversations, settings.train_on, settings.thinking)

    def _take(self, record: ChatRecord, chat: EncodedChat | Problem) -> None:
        conversation, cut = record.conversation, False
        if not isinstance(chat, Problem) and len(chat.ids) > self._settings.capacity:
            conversation, chat = self._cut(conversation, len(chat.ids))
            cut = True
        if isinstance(chat, Problem):
            raw = {"messages": list(record.conversation.messages)}
            self._intake.refuse(Bad(record.where, chat.why, cause=chat.cause, record=raw))
            return
        self._chats.setdefault(record.split, []).append(Weighed.of(chat, conversation.weight))
        learned = int(chat.learned.sum())
        self._statistics[record.split].add(conversation, len(chat.ids), learned, cut)
        self._digests.append(text_digest(record.split, chat.ids))
        settings = self._settings
        question = question_of(
            conversation, chat, self._encoder.end_of_turn_id, record.split, settings.seed
        )
        if question is not None and (settings.questions or record.split == TRAIN):
            self._questions.append(question)

    def _cut(
        self, conversation: Conversation, tokens: int
    ) -> tuple[Conversation, EncodedChat | Problem]:
        """The longest beginning that fits and ends with an answer that is learned, found by halving."""
        capacity = self._settings.capacity
        ends = [
            number
            for number, message in enumerate(conversation.messages[:-1], 1)
            if message["role"] == "assistant"
            and number > conversation.given
            and message.get("weight") != 0
        ]
        fits: tuple[Conversation, EncodedChat] | None = None
        low, high = 0, len(ends) if self._settings.overlong == "cut" else 0
        while low < high:
            middle = (low + high) // 2
            shorter = replace(conversation, messages=conversation.messages[: ends[middle]])
            [chat] = self._encoded([shorter])
            if not isinstance(chat, Problem) and len(chat.ids) <= capacity:
                fits, low = (shorter, chat), middle + 1
            else:
                high = middle
        if fits is not None:
            return fits
        why = f"{tokens} tokens, more than the {capacity} of a row, and no whole turn less would do"
        return conversation, Problem("over_long", why)

    def _write(self, split: str) -> Shard:
        settings, chats = self._settings, self._chats[split]
        rows = pack(
            np.array([len(chat.ids) for chat in chats]),
            settings.capacity,
            settings.pack_window,
            settings.key(self._index, split),
            settings.packing,
        )
        groups = row_groups(chats, rows, group_rows=settings.row_group_rows, dtype=settings.dtype)
        return settings.write_shard(self._index, split, "chat", groups)
