"""Ways in which data sets write conversations down, turned into one list of messages.

- `messages`: OpenAI's and TRL's `{"messages": [{"role", "content", …}]}`;
- `sharegpt`: `{"conversations": [{"from", "value"}]}`, also under `conversation`;
- `alpaca`: `{"instruction", "input"?, "output"}`, also with `context` and `response`;
- `prompt_completion`: TRL's `{"prompt", "completion"}`, as text or as lists of messages;
- `question_answer`: `{"query", "response"}`, `{"question", "answer"}` and other such pairs.

Beside each of them may stand a system column, and beside text a `history`. What the messages hold is checked
in `conversation.py`; here only the outer form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymill.data.messages.keys import THINKING, is_empty
from raymill.data.messages.message_list import (
    SYSTEM_COLUMNS,
    Message,
    as_messages,
    asked_messages,
    history_messages,
    kind_of,
    role_named,
    with_system,
)
from raymill.data.messages.problems import Refused

__all__ = [
    "BESIDE", "COLUMNS", "FORMATS", "Stated", "asked_text", "beside", "detect_format", "found_columns",
    "stated",
]  # fmt: skip

# Format → the sets of columns of which it needs one whole; the first that is there is read.
COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "sharegpt": (("conversations",), ("conversation",)),
    "alpaca": (("instruction", "output"), ("instruction", "response")),
    "prompt_completion": (("prompt", "completion"),),
    "question_answer": (
        ("query", "response"), ("question", "response"), ("question", "answer"), ("problem", "solution"),
        ("problem", "answer"), ("prompt", "response"), ("input", "output"),
    ),
}  # fmt: skip
FORMATS = tuple(COLUMNS)
# What may stand beside every format.
BESIDE = (*SYSTEM_COLUMNS, "history", "tools", "weight", "mask")
_FEEDBACK = ("label", "kto_tag")  # whether people liked the answer
# What belongs to a text that is asked; the first that isn't empty.
_MORE = {"instruction": ("input", "context"), "question": ("context",)}
# Columns of other kinds of training, and of whole renderings: a conversation is read without them.
_OF_OTHER_KINDS = (
    "chosen", "rejected", "rejected_response", "rejected_messages", "margin", "reward_model", "ground_truth",
    "verifier", "text",
)  # fmt: skip
# What NeMo's `type` says where attributes of the turns are written into the text.
_ATTRIBUTES = ("VALUE_TO_TEXT", "TEXT_TO_VALUE")
# What data sets write under a column of thinking to say that there is any, or how much.
_SETTINGS = ("on", "off", "yes", "no", "none", "low", "medium", "high")


@dataclass(frozen=True)
class Stated:
    """A record's words: messages, not yet checked; of the first `given` nothing is learned; the columns
    that were `read`."""

    messages: list[Message]
    given: int
    read: tuple[str, ...]


def detect_format(record: Mapping[str, Any]) -> str | None:
    """The first of FORMATS whose columns a record has (a null counts as missing), or None."""
    return next((name for name in FORMATS if found_columns(record, COLUMNS[name])), None)


def found_columns(
    record: Mapping[str, Any], ways: Sequence[tuple[str, ...]]
) -> tuple[str, ...] | None:
    """The first of several sets of columns that a record has whole, or None."""
    return next((way for way in ways if all(record.get(name) is not None for name in way)), None)


def stated(record: Mapping[str, Any], format: str) -> Stated:
    """A record's messages.

    Raises:
        Refused: a column is missing, the outer form isn't the format's, or a column beside it would change
        what is learned.
    """
    columns = found_columns(record, COLUMNS[format])
    if columns is None:
        missing = next(name for name in COLUMNS[format][0] if record.get(name) is None)
        raise Refused(
            "format",
            f"expected the format {format!r}, but there is no column {missing!r} "
            f"(has {', '.join(sorted(map(str, record))[:8]) or 'none'})",
        )
    feedback = _feedback(record)
    asked, answered, read = _READERS[format](record, columns)
    listed = not answered or not isinstance(record[columns[0]], str)
    history = history_messages(record, beside_text=not listed)
    before = with_system(record, [*history, *asked])
    _check_mask(record, before)
    # A prompt of several messages says itself what came before; nothing of that is learned.
    given = len(before) if answered and (listed or len(asked) > 1) else 0
    messages = _with_thinking(record, [*before, *answered], single=bool(answered))
    return Stated(messages, given, (*read, *BESIDE, *feedback, *_OF_OTHER_KINDS, *THINKING))


def beside(
    record: Mapping[str, Any], read: Sequence[str], messages: Sequence[Message]
) -> dict[str, Any]:
    """The columns that were neither `read` nor repeat what messages say."""
    contents = {str(message.get("content")).strip() for message in messages}
    return {
        name: value
        for name, value in record.items()
        if name not in read and not _repeats(value, contents)
    }


def asked_text(record: Mapping[str, Any], column: str) -> tuple[str, str]:
    """Return what a column of text asks, and the column that was read beside it ("": none): an instruction
    with its input or context below, or a question with its context above.

    Raises:
        Refused: one of them isn't text.
    """
    asked = _text(record[column], column)
    beside = _MORE.get(column, ())
    more = next((name for name in beside if not is_empty(record.get(name))), "")
    if not more:
        return asked, ""
    texts = [asked, _text(record[more], more)]
    return "\n\n".join(texts if column == "instruction" else reversed(texts)), more


Parts = tuple[
    list[Message], list[Message], Sequence[str]
]  # asked, answered, columns that were read


def _listed(record: Mapping[str, Any], columns: tuple[str, ...]) -> Parts:
    [column] = columns
    return as_messages(record[column], column), [], columns


def _alpaca(record: Mapping[str, Any], columns: tuple[str, ...]) -> Parts:
    asked, more = asked_text(record, "instruction")
    return *_exchange(asked, record[columns[1]]), (*columns, more)


def _prompt_completion(record: Mapping[str, Any], columns: tuple[str, ...]) -> Parts:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return *_exchange(prompt, completion), columns
    if isinstance(prompt, str) or isinstance(completion, str):
        raise Refused(
            "type",
            f"prompt is {kind_of(prompt)} and completion is {kind_of(completion)}; expected both "
            "as text or both as lists of messages",
        )
    return as_messages(prompt, "prompt"), as_messages(completion, "completion"), columns


def _question_answer(record: Mapping[str, Any], columns: tuple[str, ...]) -> Parts:
    asking, answering = columns
    if isinstance(record[asking], list):
        asked = as_messages(record[asking], asking)
        return asked, [{"role": "assistant", "content": record[answering]}], columns
    question, more = asked_text(record, asking)
    return *_exchange(question, record[answering]), (*columns, more)


def _exchange(asked: str, answered: object) -> tuple[list[Message], list[Message]]:
    return asked_messages(asked), [{"role": "assistant", "content": answered}]


def _with_thinking(
    record: Mapping[str, Any], messages: list[Message], *, single: bool
) -> list[Message]:
    """With a column of thinking as the answer's, where the record has a `single` one beside it."""
    held = {
        key: record[key]
        for key in THINKING
        if isinstance(record.get(key), str)
        and not is_empty(record[key])
        and record[key].strip().lower() not in _SETTINGS
    }
    if not held:
        return messages
    if not single:
        raise Refused(
            "unread",
            f"column {next(iter(held))!r} seems to hold what the assistant thought, and wouldn't be learned; "
            f"put it into the assistant's message as {THINKING[0]!r}, or remove it",
        )
    last = {key: value for key, value in messages[-1].items() if value is not None}
    return [*messages[:-1], {**held, **last}]


def _feedback(record: Mapping[str, Any]) -> list[str]:
    """The columns of unpaired feedback (KTO's), by which people liked the answer.

    Raises:
        Refused: they rejected it.
    """
    given = [name for name in _FEEDBACK if isinstance(record.get(name), bool | int)]
    for column in given:
        if record[column] == 0:
            raise Refused(
                "unread",
                f"column {column!r} is {record[column]!r}: the answer was judged bad, and would be learned as "
                "a good one; remove such records",
            )
    return given


def _check_mask(record: Mapping[str, Any], messages: Sequence[Message]) -> None:
    """Refuse NeMo's `mask` where it names others than the user, and its attributes of turns."""
    mask = record.get("mask")
    if not is_empty(mask) and role_named(mask) != "user":
        raise Refused(
            "unread",
            f"column 'mask' is {mask!r}, but what is masked is all that the assistant didn't write ('User'); "
            "remove it, or leave turns out by their weight",
        )
    if record.get("type") in _ATTRIBUTES and not all(
        is_empty(one.get("label")) for one in messages
    ):
        raise Refused(
            "unread",
            f"column 'type' is {record['type']!r}, by which the turns' labels become part of the text, which "
            "isn't done here; write them into the turns, or remove the labels",
        )


def _repeats(value: object, contents: set[str]) -> bool:
    if isinstance(value, str):
        return value.strip() in contents
    if not isinstance(value, list) or not value:
        return False
    held = [item.get("content", item.get("value")) for item in value if isinstance(item, Mapping)]
    return len(held) == len(value) and all(str(text).strip() in contents for text in held)


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise Refused("type", f"column {column!r} holds {kind_of(value)}, expected text")
    return value


_READERS: dict[str, Callable[[Mapping[str, Any], tuple[str, ...]], Parts]] = {
    "messages": _listed,
    "sharegpt": _listed,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "question_answer": _question_answer,
}
