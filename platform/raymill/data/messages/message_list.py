"""Lists of messages in the spellings of many data sets, read as objects with `role` and `content`.

This module finds only the speaker and the content of each message; `message.py` checks them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from raymill.data.messages.keys import Record, is_empty
from raymill.data.messages.problems import Refused

__all__ = [
    "SYSTEM_COLUMNS", "Message", "history_messages", "json_type", "parse_json", "prompt_to_messages",
    "speaker_role", "to_messages", "transcript_to_messages", "with_system",
]  # fmt: skip

Message = Record

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
CALLING = ("function_call", "tool_call")  # speakers whose content is a tool call, as JSON
_ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
    **dict.fromkeys(CALLING, "assistant"),
}
# These names are NeMo's, and are only known under `from`.
_SPEAKERS = {**_ROLES, "User": "user", "Assistant": "assistant", "System": "system"}

# Keys of an object that holds a question and its answer.
_ASKING = {"human": "user", "user": "user", "input": "user", "tool": "tool"}
_ANSWERING = ("assistant", "gpt", "bot", "output")

_HUMAN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_HUMAN_ROLES = {"Human": "user", "Assistant": "assistant"}
_EXTRA_ID = re.compile(r"\n<extra_id_1>(User|Assistant)\n")


def json_type(value: object) -> str:
    """Return the name of a value's type in JSON, with its article."""
    if value is None:
        return "null"
    names = {str: "text", bool: "a boolean", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def parse_json(value: object, where: str) -> object:
    """Return a value, parsed from JSON if it is text.

    Raises:
        Refused: the text isn't JSON.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Refused("type", f"{where} is text that isn't JSON ({error})") from error


def speaker_role(name: object) -> str | None:
    """Return the role of a speaker, or None for an unknown one."""
    return _SPEAKERS.get(name) if isinstance(name, str) else None


def to_messages(value: object, column: str) -> list[Message]:
    """Return a list of messages, each with `role` and `content`, and with all its other keys.

    `from` and `value` are read in place of these, as are objects with a question and an answer, and lists of
    texts that alternate between user and assistant. Tool calls that are turns of their own are merged into
    the assistant's turn.

    Raises:
        Refused: the value isn't such a list, or a speaker is unknown.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise Refused(
            "type", f"column {column!r} holds {json_type(value)}, expected a list of messages"
        )
    # Lists of plain texts are conversations in which user and assistant alternate.
    if column == "conversations" and value and all(isinstance(item, str) for item in value):
        return [
            {"role": ("user", "assistant")[number % 2], "content": text}
            for number, text in enumerate(value)
        ]
    messages: list[Message] = []
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping):
            raise Refused(
                "type", f"{column}: message {number} is {json_type(item)}, expected an object"
            )
        # A call that is a turn of its own belongs to the assistant's turn before it.
        if _speaker(item) in CALLING:
            _add_call(messages, _spelled(item, number), f"{column}: message {number}")
        else:
            messages += _question_and_answer(item) or [_spelled(item, number)]
    return messages


def prompt_to_messages(text: str) -> list[Message]:
    """Return the messages of a prompt that is text: one of the user's, or the turns of a dialog in the text.

    Such a dialog is Anthropic's `Human: …`, `Assistant:` that ends where the assistant answers, or NeMo's turns
    after `<extra_id_1>User` and `<extra_id_1>Assistant`, of which the first has no name.
    """
    if text.lstrip().startswith("Human:") and text.rstrip().endswith("\n\nAssistant:"):
        return transcript_to_messages(text, "prompt")[:-1]
    # Without such a mark, the whole text is `first`, the user's message.
    first, *others = _EXTRA_ID.split(text)
    pairs = zip(others[::2], others[1::2], strict=True)
    return [
        {"role": "user", "content": first},
        *({"role": _SPEAKERS[speaker], "content": content} for speaker, content in pairs),
    ]


def transcript_to_messages(text: object, name: str) -> list[Message]:
    """Return the messages of a text whose turns begin with a blank line and `Human:` or `Assistant:`.

    Raises:
        Refused: the value isn't such a text.
    """
    if not isinstance(text, str):
        raise Refused("type", f"column {name!r} holds {json_type(text)}, expected text")
    before, *turns = _HUMAN.split(text)
    if before.strip() or not turns:
        raise Refused(
            "format",
            f"{name}: expected text that begins with 'Human:', found {text.strip()[:40]!r}",
        )
    return [
        {"role": _HUMAN_ROLES[speaker], "content": content.strip()}
        for speaker, content in zip(turns[::2], turns[1::2], strict=True)
    ]


def history_messages(record: Message, *, beside_text: bool) -> list[Message]:
    """Return the earlier turns of a column `history`: pairs of question and answer, or messages, or JSON text.

    `beside_text`: the question is text, so that the history belongs before it.

    Raises:
        Refused: the column is something else, or the record also has a whole conversation.
    """
    value = record.get("history")
    if is_empty(value):
        return []
    if not beside_text:
        raise Refused(
            "unread",
            "column 'history' accompanies a list of messages, which should contain the earlier turns; put them "
            "there, or remove it",
        )
    value = parse_json(value, "history")
    if not isinstance(value, list):
        raise Refused("type", f"history is {json_type(value)}, expected a list of earlier turns")
    messages: list[Message] = []
    for number, item in enumerate(value, 1):
        # From the first object on, the history is a list of messages.
        if not isinstance(item, list):
            return [*messages, *to_messages(value[number - 1 :], "history")]
        if len(item) != 2 or not all(isinstance(text, str) for text in item):
            raise Refused("type", f"history: turn {number} isn't a question and an answer")
        messages += [
            {"role": "user", "content": item[0]},
            {"role": "assistant", "content": item[1]},
        ]
    return messages


def with_system(record: Message, messages: Sequence[Message]) -> list[Message]:
    """Return messages with a system column's text as the first; a blank column counts as missing.

    Raises:
        Refused: the column isn't text, or differs from another one or from the messages' own.
    """
    texts: dict[str, str] = {}
    for column in SYSTEM_COLUMNS:
        value = record.get(column)
        if value is not None and not isinstance(value, str):
            raise Refused("type", f"{column} is {json_type(value)}, expected text")
        if value is not None and value.strip():
            # Columns that repeat the same text are one system message.
            texts.setdefault(value.strip(), column)
    if not texts:
        return list(messages)
    column, *others = texts.values()
    if others:
        raise Refused("order", f"columns {column!r} and {others[0]!r} differ, expected one of them")
    first = messages[0] if messages else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": record[column]}, *messages]
    if str(first.get("content")).strip() not in texts:
        raise Refused(
            "order", f"column {column!r} and message 1 are both the system's, expected one"
        )
    return list(messages)


def _spelled(item: Message, number: int) -> Message:
    """Return a message with `role` and `content`, whatever its own keys for them."""
    speaker, role = item.get("from"), item.get("role")
    if speaker is not None:
        if speaker_role(speaker) is None:
            known = ", ".join(_SPEAKERS)
            raise Refused("role", f"turn {number}: 'from' is {speaker!r}, expected one of {known}")
        if role is not None and _role(role) != speaker_role(speaker):
            raise Refused("role", f"turn {number}: 'from' is {speaker!r}, but 'role' is {role!r}")
    content, value = item.get("content"), item.get("value")
    # Both keys are accepted if they agree, as in exports that keep both spellings.
    if content is not None and value is not None and content != value:
        raise Refused("type", f"turn {number}: 'content' and 'value' differ, expected one of them")
    message = {key: item[key] for key in item if key not in ("from", "value")}
    text = value if content is None else content
    name = _speaker(item)
    if name in CALLING:
        calls = parse_json(text, f"message {number}: {name}")
        return {**message, "role": "assistant", "content": None,
                "tool_calls": calls if isinstance(calls, list) else [calls]}  # fmt: skip
    return {
        **message,
        "role": _role(name) if speaker is None else speaker_role(name),
        "content": text,
    }


def _speaker(item: Message) -> object:
    return item.get("role") if item.get("from") is None else item["from"]


def _role(name: object) -> object:
    return _ROLES.get(name, name) if isinstance(name, str) else name


def _question_and_answer(item: Message) -> list[Message]:
    """Return an object with a question and an answer as two messages, or nothing for other objects.

    The object's other keys become the answer's.
    """
    if "role" in item or "from" in item:
        return []
    asking = [key for key in _ASKING if item.get(key) is not None]
    answering = [key for key in _ANSWERING if item.get(key) is not None]
    # With several candidates it isn't clear which is the question, so nothing is guessed.
    if len(asking) != 1 or len(answering) != 1:
        return []
    rest = {key: value for key, value in item.items() if key not in (*asking, *answering)}
    return [
        {"role": _ASKING[asking[0]], "content": item[asking[0]]},
        {**rest, "role": "assistant", "content": item[answering[0]]},
    ]


def _add_call(messages: list[Message], call: Message, where: str) -> None:
    """Add a turn that calls tools; directly after an assistant's turn, it becomes part of that turn."""
    # Data sets store the assistant's words and each of its calls as separate turns.
    before = messages[-1] if messages else {}
    earlier = before.get("tool_calls", [])
    if before.get("role") != "assistant" or not isinstance(earlier, list):
        messages.append(call)
        return
    for key, value in call.items():
        merged = key in ("role", "content", "tool_calls")
        if not merged and value is not None and before.get(key) != value:
            raise Refused("order", f"{where}: {key!r} differs within one turn of the assistant")
    messages[-1] = {**before, "tool_calls": [*earlier, *call["tool_calls"]]}
