"""Formats in which data sets store conversations, read as one list of messages.

- `messages`: OpenAI's and TRL's `{"messages": [{"role", "content", …}]}`;
- `sharegpt`: `{"conversations": [{"from", "value"}]}`, also under `conversation`;
- `alpaca`: `{"instruction", "input"?, "output"}`, also with `context` and `response`;
- `prompt_completion`: TRL's `{"prompt", "completion"}`, as text or as lists of messages;
- `question_answer`: `{"query", "response"}`, `{"question", "answer"}` and other such pairs.

Each of them may have a system column, and those with text a `history`. This module reads only the outer form;
`conversation.py` checks the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from raymill.data.messages.keys import THINKING, JsonObject, Record, is_empty
from raymill.data.messages.message_list import (
    SYSTEM_COLUMNS,
    Message,
    history_messages,
    json_type,
    prompt_to_messages,
    speaker_role,
    to_messages,
    with_system,
)
from raymill.data.messages.problems import Refused

__all__ = [
    "COLUMNS", "FORMATS", "SHARED_COLUMNS", "RawConversation", "detect_format", "extract_conversation",
    "matching_columns", "question_text", "unread_columns",
]  # fmt: skip

# Format → the sets of columns of which it needs one whole; the first complete set is read.
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
# Columns that records of every format may have.
SHARED_COLUMNS = (*SYSTEM_COLUMNS, "history", "tools", "weight", "mask")
_FEEDBACK = ("label", "kto_tag")  # unpaired ratings of the answer
# Column of a question → the columns that may complete it, of which the first that isn't empty is read.
_COMPLETING = {"instruction": ("input", "context"), "question": ("context",)}
# Columns for other kinds of training, and of whole renderings: conversations are read without them.
_OF_OTHER_KINDS = (
    "chosen", "rejected", "rejected_response", "rejected_messages", "margin", "reward_model", "ground_truth",
    "verifier", "text",
)  # fmt: skip
# Values of NeMo's `type` with which attributes of the turns become part of the text.
_ATTRIBUTES = ("VALUE_TO_TEXT", "TEXT_TO_VALUE")
# Values of a thinking column that switch thinking on or off, instead of being the thinking.
_THINKING_SWITCHES = ("on", "off", "yes", "no", "none", "low", "medium", "high")


@dataclass(frozen=True)
class RawConversation:
    """The unchecked messages of a record, `prompt_length` of them a prompt, and the columns `read`."""

    messages: list[Message]
    prompt_length: int
    read: tuple[str, ...]


def detect_format(record: Record) -> str | None:
    """Return the first of FORMATS whose columns a record has (a null counts as missing), or None."""
    return next((name for name in FORMATS if matching_columns(record, COLUMNS[name])), None)


def matching_columns(record: Record, ways: Sequence[tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the first of several sets of columns that a record has completely, or None."""
    return next((way for way in ways if all(record.get(name) is not None for name in way)), None)


def extract_conversation(record: Record, format: str) -> RawConversation:
    """Read a record's messages, without checking them.

    Raises:
        Refused: a column is missing, the outer form isn't the format's, or another column would change what
        is learned.
    """
    columns = matching_columns(record, COLUMNS[format])
    if columns is None:
        missing = next(name for name in COLUMNS[format][0] if record.get(name) is None)
        raise Refused(
            "format",
            f"expected the format {format!r}, but there is no column {missing!r} "
            f"(has {', '.join(sorted(map(str, record))[:8]) or 'none'})",
        )
    feedback = _feedback(record)
    question, answer, read = _READERS[format](record, columns)
    listed = not answer or not isinstance(record[columns[0]], str)
    history = history_messages(record, beside_text=not listed)
    before = with_system(record, [*history, *question])
    _check_mask(record, before)
    # A prompt of several messages holds earlier turns, from which nothing is learned.
    prompt_length = len(before) if answer and (listed or len(question) > 1) else 0
    messages = _with_thinking(record, [*before, *answer], single=bool(answer))
    return RawConversation(
        messages, prompt_length, (*read, *SHARED_COLUMNS, *feedback, *_OF_OTHER_KINDS, *THINKING)
    )


def unread_columns(record: Record, read: Sequence[str], messages: Sequence[Message]) -> JsonObject:
    """Return the columns that are neither `read` nor repeat the content of messages."""
    contents = {str(message.get("content")).strip() for message in messages}
    return {
        name: value
        for name, value in record.items()
        if name not in read and not _repeats(value, contents)
    }


def question_text(record: Record, column: str) -> tuple[str, str]:
    """Return the question in a text column, completed by another column, and that column's name ("": none).

    An instruction has its input or context below it, a question its context above.

    Raises:
        Refused: one of the columns isn't text.
    """
    question = _text(record[column], column)
    completing = _COMPLETING.get(column, ())
    other = next((name for name in completing if not is_empty(record.get(name))), "")
    if not other:
        return question, ""
    texts = [question, _text(record[other], other)]
    return "\n\n".join(texts if column == "instruction" else reversed(texts)), other


# Messages of the question, messages of the answer, and the columns that were read.
Parts = tuple[list[Message], list[Message], Sequence[str]]


def _listed(record: Record, columns: tuple[str, ...]) -> Parts:
    [column] = columns
    return to_messages(record[column], column), [], columns


def _alpaca(record: Record, columns: tuple[str, ...]) -> Parts:
    question, other = question_text(record, "instruction")
    return *_exchange(question, record[columns[1]]), (*columns, other)


def _prompt_completion(record: Record, columns: tuple[str, ...]) -> Parts:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return *_exchange(prompt, completion), columns
    if isinstance(prompt, str) or isinstance(completion, str):
        raise Refused(
            "type",
            f"prompt is {json_type(prompt)} and completion is {json_type(completion)}; expected both "
            "as text or both as lists of messages",
        )
    return to_messages(prompt, "prompt"), to_messages(completion, "completion"), columns


def _question_answer(record: Record, columns: tuple[str, ...]) -> Parts:
    asking, answering = columns
    if isinstance(record[asking], list):
        messages = to_messages(record[asking], asking)
        return messages, [{"role": "assistant", "content": record[answering]}], columns
    question, other = question_text(record, asking)
    return *_exchange(question, record[answering]), (*columns, other)


def _exchange(question: str, answer: object) -> tuple[list[Message], list[Message]]:
    return prompt_to_messages(question), [{"role": "assistant", "content": answer}]


def _with_thinking(record: Record, messages: list[Message], *, single: bool) -> list[Message]:
    """Return messages with the record's thinking column as the thinking of its `single` answer."""
    thinking = {
        key: record[key]
        for key in THINKING
        if isinstance(record.get(key), str)
        and not is_empty(record[key])
        and record[key].strip().lower() not in _THINKING_SWITCHES
    }
    if not thinking:
        return messages
    if not single:
        raise Refused(
            "unread",
            f"column {next(iter(thinking))!r} seems to hold the assistant's thinking, and wouldn't be learned; "
            f"put it into the assistant's message as {THINKING[0]!r}, or remove it",
        )
    last = {key: value for key, value in messages[-1].items() if value is not None}
    return [*messages[:-1], {**thinking, **last}]


def _feedback(record: Record) -> list[str]:
    """Return the columns of unpaired feedback (KTO's), all of which rate the answer good.

    Raises:
        Refused: one rates it bad.
    """
    columns = [name for name in _FEEDBACK if isinstance(record.get(name), bool | int)]
    for column in columns:
        if record[column] == 0:
            raise Refused(
                "unread",
                f"column {column!r} is {record[column]!r}: the answer was judged bad, and would be learned as "
                "a good one; remove such records",
            )
    return columns


def _check_mask(record: Record, messages: Sequence[Message]) -> None:
    """Refuse NeMo's `mask` if it names another role than the user, and its attributes of turns."""
    mask = record.get("mask")
    if not is_empty(mask) and speaker_role(mask) != "user":
        raise Refused(
            "unread",
            f"column 'mask' is {mask!r}, but the masked turns are always those of all other roles ('User'); "
            "remove it, or set the weight of turns to 0",
        )
    if record.get("type") in _ATTRIBUTES and not all(
        is_empty(one.get("label")) for one in messages
    ):
        raise Refused(
            "unread",
            f"column 'type' is {record['type']!r}, with which the turns' labels become part of the text; this "
            "isn't supported: write them into the turns, or remove the labels",
        )


def _repeats(value: object, contents: set[str]) -> bool:
    if isinstance(value, str):
        return value.strip() in contents
    if not isinstance(value, list) or not value:
        return False
    texts = [item.get("content", item.get("value")) for item in value if isinstance(item, Mapping)]
    return len(texts) == len(value) and all(str(text).strip() in contents for text in texts)


def _text(value: object, column: str) -> str:
    if not isinstance(value, str):
        raise Refused("type", f"column {column!r} holds {json_type(value)}, expected text")
    return value


_READERS: dict[str, Callable[[Record, tuple[str, ...]], Parts]] = {
    "messages": _listed,
    "sharegpt": _listed,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "question_answer": _question_answer,
}
