"""One prompt, read from any known form and checked: what a model is asked, and what its answer is judged by.

A record has what is asked in the first of these columns that it has:

- `messages`: OpenAI's list; where it ends with the assistant's turn, that turn is the reference answer;
- `prompt`: text, or a list of messages;
- `question`, `query`, `problem`: text; `instruction`: text, with `input` below. A `context` belongs to a
  question or an instruction;
- `conversations`: as `messages`; `input`: as `prompt`.

Beside it may stand `answer` (the reference, text or a number; it counts before a last turn), `verifier` (a
reward function's name), a system column, `history`, `tools` and `id`. Everything else is kept as `extra`, for
reward functions; where there is no `answer`, one of its columns (REFERENCES) is the reference too.
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
)
from raymill.data.messages.formats import asked_text
from raymill.data.messages.keys import UnusedKeys, refuse_altering
from raymill.data.messages.message_list import (
    SYSTEM_COLUMNS,
    Message,
    as_messages,
    asked_messages,
    history_messages,
    kind_of,
    with_system,
)
from raymill.data.messages.padding import as_defined
from raymill.data.messages.problems import Problem, Refused
from raymill.durable import canonical_json

__all__ = ["CAUSES", "COLUMNS", "Problem", "Prompt", "read_prompt"]

CAUSES = (
    *problems.CAUSES,
    "extra",  # the other columns hold too much to be kept beside every prompt
    "encoding",  # the chat template refuses the prompt, or the tokenizer can't encode it
)
COLUMNS = (  # of which the first that a record has is asked
    "messages", "prompt", "question", "query", "problem", "conversations", "instruction", "input",
)  # fmt: skip
LISTS = ("messages", "conversations")  # which may end with the reference
OTHER_COLUMNS = ("answer", "verifier", *SYSTEM_COLUMNS, "history", "tools", "id")
# Columns, or keys within one, of which the first that holds text or a number is the reference without `answer`.
REFERENCES = (
    ("ground_truth",), ("reward_model", "ground_truth"), ("expected_answer",), ("solution",), ("response",),
    ("output",),
)  # fmt: skip
EXTRA_BYTES = 64 * 2**10  # of `extra` as JSON: every process that rewards answers holds all of them
LARGEST = 1e300  # number that an answer may be


@dataclass(frozen=True)
class Prompt:
    """Checked messages that end with a user's turn or a tool's result, and what belongs to them.

    `answer`: the reference; `verifier`: a reward function's name, "none" where none is wanted, None where
    nothing is said; `tools`: what the assistant may call, as JSON schemas; `extra`: JSON; `unused`: the names
    of what its messages held beside, and nobody read.
    """

    messages: tuple[dict[str, Any], ...]
    answer: str | None = None
    verifier: str | None = None
    tools: tuple[dict[str, Any], ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    id: str | None = None
    unused: tuple[str, ...] = field(default=(), compare=False)

    @property
    def first_user(self) -> str:
        """The first user message's text: groups what must not be split."""
        return next(str(one["content"]) for one in self.messages if one["role"] == "user")


def read_prompt(record: Any) -> Prompt | Problem:
    """A record as a prompt, or what is wrong with it."""
    try:
        if not isinstance(record, Mapping):
            raise Refused("type", f"expected an object, found {kind_of(record)}")
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
        asked, read, unused = *_asked(record, column), UnusedKeys()
        if column in LISTS and asked and asked[-1].get("role") == "assistant":
            messages, answer = _parted(asked, answer, unused)
        else:
            messages = checked_messages(asked, ("user", "tool"), unused)
        tools = checked_tools(record.get("tools"))
        return Prompt(
            as_defined(messages, tools),
            _reference(record) if answer is None else answer,
            _name(record.get("verifier"), "verifier"),
            tools,
            _extra(record, read),
            _id(record.get("id")),
            unused.names,
        )
    except Refused as refused:
        return refused.problem


def _asked(record: Mapping[str, Any], column: str) -> tuple[list[Message], tuple[str, ...]]:
    """Return what the column holds, as messages that aren't checked yet, and the columns that were read."""
    value: object = record[column]
    read: tuple[str, ...] = (column,)
    if isinstance(value, str) and column not in LISTS:
        text, more = asked_text(record, column)
        asked, read = asked_messages(text), (column, more)
    elif isinstance(value, list) and column in (*LISTS, "prompt", "input"):
        asked = as_messages(value, column)
    else:
        lists = column in LISTS
        wanted = "a list of messages" if lists else "text"
        if column in ("prompt", "input"):
            wanted = "text or a list of messages"
        raise Refused("type", f"column {column!r} holds {kind_of(value)}, expected {wanted}")
    history = history_messages(record, beside_text=isinstance(value, str))
    return with_system(record, [*history, *asked]), read


def _parted(
    asked: list[Message], answer: str | None, unused: UnusedKeys
) -> tuple[tuple[dict[str, Any], ...], str | None]:
    """The messages before the assistant's last turn, and the reference answer."""
    *before, last = checked_messages(asked, unused=unused)
    if answer is None and last.get("tool_calls"):
        raise Refused(
            "order",
            f"message {len(asked)}: ends with a call of tools, which is no reference answer; "
            "leave that turn out, or give a column 'answer'",
        )
    return tuple(before), last["content"] if answer is None else answer


def _answer(value: object) -> str | None:
    """Text, or a number as text: 72.0, as tables often have it, is 72."""
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not -LARGEST <= value <= LARGEST:
            raise Refused("type", f"answer is beyond {LARGEST:g}, or no number at all")
        return repr(value).removesuffix(".0")
    if not isinstance(value, str):
        raise Refused("type", f"answer is {kind_of(value)}, expected text or a number")
    check_text(value, "answer")
    if not value.strip():
        raise Refused("empty", "the answer is empty; leave it out where there is none")
    return value


def _reference(record: Mapping[str, Any]) -> str | None:
    """The reference of a record without `answer`, where another column holds text or a number."""
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
    """Text; None where it is missing or blank."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise Refused("type", f"{column} is {kind_of(value)}, expected text")
    check_text(value, column)
    return value if value.strip() else None


def _id(value: object) -> str | None:
    number = isinstance(value, int) and not isinstance(value, bool)
    return _name(str(value) if number else value, "id")


def _extra(record: Mapping[str, Any], read: tuple[str, ...]) -> dict[str, Any]:
    """All other columns; a null counts as missing, as in a table."""
    known = (*read, *OTHER_COLUMNS)
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
