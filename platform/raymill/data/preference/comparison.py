"""Comparisons, read from any known format and checked: answers to one prompt, and their order.

Every record becomes a `Comparison` or a `Problem`; nothing is repaired silently. Each answer is checked as a
conversation together with its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from raymill.data.messages import problems
from raymill.data.messages.conversation import Conversation, read_conversation
from raymill.data.messages.formats import SHARED_COLUMNS, unread_columns
from raymill.data.messages.keys import COLUMN, Record, UnusedKeys, refuse_altering
from raymill.data.messages.message_list import json_type
from raymill.data.messages.problems import Problem, Refused
from raymill.data.preference.formats import (
    FORMATS,
    RawComparison,
    detect_format,
    extract_comparison,
)
from raymill.durable import canonical_json
from raymill.errors import DataError

__all__ = ["CAUSES", "FORMATS", "Comparison", "Pair", "read_comparison"]

CAUSES = (
    *problems.CAUSES,
    "prompt",  # the answers don't have the same prompt
    "same",  # an answer is preferred to itself
)


@dataclass(frozen=True)
class Pair:
    """The numbers of a better and a worse answer, and the margin between them (0: unknown)."""

    better: int
    worse: int
    margin: float


@dataclass(frozen=True)
class Comparison:
    """Checked answers to one prompt; each is a conversation whose `prompt_length` messages are the prompt.

    `ties` are numbers of answers that were judged equally good; `annotator` is the judging person, if known;
    `unused` names the record's keys that nothing reads.
    """

    answers: tuple[Conversation, ...]
    names: tuple[str, ...]  # of the answers, for error messages
    pairs: tuple[Pair, ...]
    ties: tuple[tuple[int, int], ...]
    annotator: str | None = None
    unused: tuple[str, ...] = field(default=(), compare=False)

    @property
    def weight(self) -> float:
        """The weight of the comparison's loss, above 0."""
        return self.answers[0].weight

    @property
    def first_user(self) -> str:
        """The text of the first user message: comparisons that share it stay in one split."""
        return self.answers[0].first_user

    @property
    def prompt_key(self) -> str:
        """The prompt's messages and tools as text, equal for equal prompts."""
        first = self.answers[0]
        prompt = list(first.messages[: first.prompt_length])
        return canonical_json([prompt, first.tools and list(first.tools)])


def read_comparison(record: Any, format: str | None = None) -> Comparison | Problem:
    """Return a record as a comparison, or why it can't be used; `format` is one of FORMATS, or detected.

    Prompts are identified by their text, not by an id. Keys that no format knows are refused if they would
    change what is learned; others are listed as `unused`.

    Raises:
        DataError: no such format.
    """
    if format is not None and format not in FORMATS:
        raise DataError(
            f"{format!r} isn't a format of preferences; expected one of {', '.join(FORMATS)}."
        )
    try:
        if not isinstance(record, Mapping):
            raise Refused("type", f"expected an object, found {json_type(record)}")
        detected = format or detect_format(record)
        if detected is None:
            columns = ", ".join(sorted(map(str, record))[:8]) or "none"
            raise Refused(
                "format",
                f"none of the formats {', '.join(FORMATS)} (has {columns}){_about_feedback(record)}",
            )
        # Refusing comes first: an unread key that changes what is learned matters more than the
        # answers.
        refuse_altering(record, "column", "record")
        raw = extract_comparison(record, detected)
        answers = tuple(_answer(record, raw, number) for number in range(len(raw.answers)))
        pairs, ties = _order(raw)
        annotator = _annotator(record.get("annotator"))
        return Comparison(answers, raw.names, pairs, ties, annotator, _unused(record, raw, answers))
    except Refused as refused:
        return refused.problem


def _answer(record: Record, raw: RawComparison, number: int) -> Conversation:
    """Return the prompt with one answer, which begins with the assistant's turn."""
    name = raw.names[number]
    if not raw.prompt:
        raise Refused("empty", "the prompt holds no messages")
    whole = {
        "prompt": raw.prompt,
        "completion": raw.answers[number],
        "tools": record.get("tools"),
        "weight": record.get("weight"),
    }
    # The prompt is checked once per answer, so that every problem is found by the same code.
    chat = read_conversation(whole, "prompt_completion")
    if isinstance(chat, Problem):
        raise Refused(chat.cause, f"prompt and {name}: {chat.why}")
    before = chat.messages[chat.prompt_length - 1]["role"]
    if before not in ("user", "tool"):
        raise Refused("order", f"the prompt ends with the {before}, expected user or tool")
    after = chat.messages[chat.prompt_length]["role"]
    if after != "assistant":
        raise Refused("order", f"{name} begins with the {after}, expected assistant")
    return chat


def _unused(record: Record, raw: RawComparison, answers: Sequence[Conversation]) -> tuple[str, ...]:
    messages = [message for answer in answers for message in answer.messages]
    unused = UnusedKeys()
    read = (*raw.read, *SHARED_COLUMNS, "annotator")
    unused.note(unread_columns(record, read, messages), ("text",), COLUMN)
    names = (name for answer in answers for name in answer.unused)
    return tuple(dict.fromkeys((*unused.names, *names)))


def _about_feedback(record: Record) -> str:
    columns = [name for name in ("label", "kto_tag") if record.get(name) is not None]
    if not columns:
        return ""
    return (
        f": a {columns[0]!r} with one answer is unpaired feedback, without a second answer to compare; make "
        "pairs of good and bad answers to one prompt"
    )


def _order(raw: RawComparison) -> tuple[tuple[Pair, ...], tuple[tuple[int, int], ...]]:
    """Return all pairs of different quality, the better answer first, and all tied pairs."""
    pairs, ties = [], []
    quality = raw.quality
    for first, second in combinations(range(len(quality)), 2):
        if quality[first] == quality[second]:
            ties.append((first, second))
            continue
        better, worse = (first, second) if quality[first] > quality[second] else (second, first)
        margin = quality[better] - quality[worse] if raw.margin is None else raw.margin
        pairs.append(Pair(better, worse, margin))
    return tuple(pairs), tuple(ties)


def _annotator(value: object) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    # In Python a boolean is an integer, but it doesn't name an annotator.
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise Refused("type", f"annotator is {json_type(value)}, expected text or an integer")
    return str(value)
