"""Prompts, read from any known format and checked: messages to answer, and data for scoring the answers.

The messages are in the first of these columns that a record has:

- `messages`: OpenAI's list; where it ends with the assistant's turn, that turn is the reference answer;
- `prompt`: text, or a list of messages;
- `question`, `query`, `problem`: text; `instruction`: text, with `input` below. A `context` belongs to a
  question or an instruction;
- `conversations`: as `messages`; `input`: as `prompt`.

A record may also have `answer` (the reference, text or a number, which takes precedence over a last turn),
`verifier` (the name of a reward function), a system column, `history`, `tools` and `id`. Everything else is
kept as `extra`, for reward functions; without `answer`, one of these columns (REFERENCES) is the reference
too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raymill.data.messages import problems
from raymill.data.messages.conversation import (
    check_json,
    check_text,
    checked_messages,
    checked_tools,
    drop_undefined_arguments,
)
from raymill.data.messages.formats import question_text
from raymill.data.messages.keys import JsonObject, Record, UnusedKeys, refuse_altering
from raymill.data.messages.message_list import (
    SYSTEM_COLUMNS,
    Message,
    history_messages,
    json_type,
    prompt_to_messages,
    to_messages,
    with_system,
)
from raymill.data.messages.problems import Problem, Refused
from raymill.durable import canonical_json

__all__ = ["CAUSES", "COLUMNS", "Problem", "Prompt", "read_prompt"]

CAUSES = (
    *problems.CAUSES,
    "extra",  # the other columns are too large to be kept with every prompt
    "encoding",  # the chat template refuses the prompt, or the tokenizer can't encode it
)
# The first of these columns that a record has holds the messages.
COLUMNS = (
    "messages", "prompt", "question", "query", "problem", "conversations", "instruction", "input",
)  # fmt: skip
LISTS = ("messages", "conversations")  # columns that may end with the reference
OTHER_COLUMNS = ("answer", "verifier", *SYSTEM_COLUMNS, "history", "tools", "id")
# Columns, or keys within one. Without `answer`, the first that holds text or a number is the reference.
REFERENCES = (
    ("ground_truth",), ("reward_model", "ground_truth"), ("expected_answer",), ("solution",), ("response",),
    ("output",),
)  # fmt: skip
# Limit of `extra` as JSON: every process that scores answers holds those of all prompts in memory.
EXTRA_BYTES = 64 * 2**10
LARGEST = 1e300  # absolute value of a numeric answer


@dataclass(frozen=True)
class Prompt:
    """Checked messages that end with a user's turn or a tool's result, and the data for scoring answers.

    `answer` is the reference; `verifier` is the name of a reward function ("none": no reward function, None:
    not stated); `tools` are what the assistant may call, as JSON schemas; `extra` is JSON; `unused` names the
    keys of messages that nothing reads.
    """

    messages: tuple[JsonObject, ...]
    answer: str | None = None
    verifier: str | None = None
    tools: tuple[JsonObject, ...] | None = None
    extra: JsonObject = field(default_factory=dict)
    id: str | None = None
    unused: tuple[str, ...] = field(default=(), compare=False)

    @property
    def first_user(self) -> str:
        """The text of the first user message: prompts that share it stay in one split."""
        return next(str(turn["content"]) for turn in self.messages if turn["role"] == "user")


def read_prompt(record: Any) -> Prompt | Problem:
    """Return a record as a prompt, or why it can't be used."""
    try:
        if not isinstance(record, Mapping):
            raise Refused("type", f"expected an object, found {json_type(record)}")
        column = next((name for name in COLUMNS if record.get(name) is not None), None)
        if column is None:
            known = ", ".join(sorted(map(str, record))[:8]) or "none"
            raise Refused(
                "format",
                f"expected a column {' or '.join(COLUMNS[:3])} (has {known}); also read are "
                f"{', '.join(COLUMNS[3:])}",
            )
        refuse_altering(record, "column", "prompt")
        answer = _answer(record.get("answer"))
        raw, read, unused = *_raw_messages(record, column), UnusedKeys()
        if column in LISTS and raw and raw[-1].get("role") == "assistant":
            messages, answer = _split_reference(raw, answer, unused)
        else:
            messages = checked_messages(raw, ("user", "tool"), unused)
        tools = checked_tools(record.get("tools"))
        return Prompt(
            drop_undefined_arguments(messages, tools),
            _reference(record) if answer is None else answer,
            _name(record.get("verifier"), "verifier"),
            tools,
            _extra(record, read),
            _id(record.get("id")),
            unused.names,
        )
    except Refused as refused:
        return refused.problem


def _raw_messages(record: Record, column: str) -> tuple[list[Message], tuple[str, ...]]:
    """Return the unchecked messages of a column, and the columns that were read."""
    value: object = record[column]
    read: tuple[str, ...] = (column,)
    if isinstance(value, str) and column not in LISTS:
        text, other = question_text(record, column)
        messages, read = prompt_to_messages(text), (column, other)
    elif isinstance(value, list) and column in (*LISTS, "prompt", "input"):
        messages = to_messages(value, column)
    else:
        lists = column in LISTS
        wanted = "a list of messages" if lists else "text"
        if column in ("prompt", "input"):
            wanted = "text or a list of messages"
        raise Refused("type", f"column {column!r} holds {json_type(value)}, expected {wanted}")
    history = history_messages(record, beside_text=isinstance(value, str))
    return with_system(record, [*history, *messages]), read


def _split_reference(
    raw: list[Message], answer: str | None, unused: UnusedKeys
) -> tuple[tuple[JsonObject, ...], str | None]:
    """Return the messages before the assistant's last turn, and that turn unless there is another answer."""
    *before, last = checked_messages(raw, unused=unused)
    if answer is None and last.get("tool_calls"):
        raise Refused(
            "order",
            f"message {len(raw)}: ends with a tool call, which isn't a reference answer; "
            "leave that turn out, or give a column 'answer'",
        )
    return tuple(before), last["content"] if answer is None else answer


def _answer(value: object) -> str | None:
    """Return the reference as text; of a number, 72.0, as tables often have it, becomes 72."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not -LARGEST <= value <= LARGEST:
            raise Refused("type", f"answer is beyond {LARGEST:g}, or no number at all")
        return repr(value).removesuffix(".0")
    if not isinstance(value, str):
        raise Refused("type", f"answer is {json_type(value)}, expected text or a number")
    check_text(value, "answer")
    if not value.strip():
        raise Refused("empty", "the answer is empty; leave it out where there is none")
    return value


def _reference(record: Record) -> str | None:
    """Return the reference of a record without `answer`, from another column of text or a number, or None."""
    # Data sets name the reference differently; the first usable column is taken.
    for way in REFERENCES:
        value: object = record
        for key in way:
            value = value.get(key) if isinstance(value, Mapping) else None
        if (
            isinstance(value, str | int | float)
            and not isinstance(value, bool)
            and str(value).strip()
        ):
            return _answer(value)
    return None


def _name(value: object, column: str) -> str | None:
    """Return a text, or None where it is missing or blank."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refused("type", f"{column} is {json_type(value)}, expected text")
    check_text(value, column)
    return value if value.strip() else None


def _id(value: object) -> str | None:
    number = isinstance(value, int) and not isinstance(value, bool)
    return _name(str(value) if number else value, "id")


def _extra(record: Record, read: tuple[str, ...]) -> JsonObject:
    """Return all other columns; a null counts as missing, as in a table."""
    known = (*read, *OTHER_COLUMNS)
    # Reward functions read these columns by name, so nothing is renamed or dropped.
    extra = {
        name: value for name, value in record.items() if name not in known and value is not None
    }
    for name, value in extra.items():
        check_json({name: value}, f"column {name!r}")
    size = len(canonical_json(extra).encode())
    if size > EXTRA_BYTES:
        raise Refused(
            "extra",
            f"the other columns hold {size:,} bytes, more than {EXTRA_BYTES:,}: "
            f"{', '.join(sorted(extra)[:8])}",
        )
    return extra
