"""Formats in which data sets store preferences between answers.

- `pairs`: `{"prompt", "chosen", "rejected"}`, texts or lists of messages; lists that begin with the
  prompt, or with the same messages if there is no prompt, are whole conversations. The columns may have other
  names (PROMPTS, ANSWERS);
- `hh`: Anthropic's `{"chosen", "rejected"}`, whole conversations as text: `\\n\\nHuman: …\\n\\nAssistant: …`;
- `rankings`: `{"prompt" | …, "answers", "ranks" | "scores"}`, or answers that hold their ranks themselves.

This module reads only the outer form; `comparison.py` checks the messages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymill.data.messages.formats import matching_columns, question_text
from raymill.data.messages.keys import THINKING, Record
from raymill.data.messages.message_list import (
    Message,
    history_messages,
    json_type,
    prompt_to_messages,
    to_messages,
    transcript_to_messages,
    with_system,
)
from raymill.data.messages.problems import Refused

# Columns of the better and the worse answer.
ANSWERS = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"), ("response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
)  # fmt: skip
# Columns of a whole conversation that ends with the better answer, and of the worse answer.
CONTINUED = (
    ("messages", "rejected_response"), ("conversations", "rejected_response"),
    ("messages", "rejected_messages"),
)  # fmt: skip
# Columns of two answers and a number: below 0 the first is better, above 0 the second, and 0 is a tie.
STRENGTHS = (
    ("response_1", "response_2", "preference_strength"), ("response1", "response2", "overall_preference"),
)  # fmt: skip
# Columns of the prompt, if the answers don't repeat it; the first that a record has is read.
PROMPTS = (
    "prompt", "messages", "conversations", "question", "query", "instruction", "input", "context",
)  # fmt: skip
_JUDGED = ("ranks", "scores")
_ENTRIES = ("answers", "completions")
_ENTRY_ANSWERS = ("answer", "completion", "response")
_ENTRY_RANKS = ("rank", "score", "overall_score")

# Format → the sets of columns of which it needs one whole.
COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pairs": (*ANSWERS, *CONTINUED, *STRENGTHS),
    "hh": (("chosen", "rejected"),),
    "rankings": (
        *((prompt, "answers", judged) for prompt in ("prompt", "messages") for judged in _JUDGED),
        *((prompt, entries) for prompt in PROMPTS for entries in _ENTRIES),
    ),
}  # fmt: skip
FORMATS = tuple(COLUMNS)
MOST_ANSWERS = 64  # of a ranking; the number of pairs is nearly half its square
MOST = 1e6  # of a margin or a score, which are stored in 32 bits


@dataclass(frozen=True)
class RawComparison:
    """The unchecked messages of k ≥ 2 answers to one prompt, and their order.

    `quality[k]`: higher is better, equal is a tie. `margin` is that between better and worse answers, 0 if it
    is unknown, None if it is the difference in quality. `read` are the columns that were read.
    """

    prompt: list[Message]
    answers: list[list[Message]]
    names: tuple[str, ...]  # of the answers, for error messages
    quality: tuple[float, ...]
    margin: float | None = 0.0
    read: tuple[str, ...] = ()


def detect_format(record: Record) -> str | None:
    """Return the one of FORMATS that a record's columns have (a null counts as missing), or None."""
    if record.get("answers") is not None:
        return "rankings"
    columns = matching_columns(record, COLUMNS["pairs"])
    if columns is None:
        return "rankings" if record.get("completions") is not None else None
    # Text answers without a prompt are whole conversations in Anthropic's notation.
    whole_text = columns == ("chosen", "rejected") and isinstance(record["chosen"], str)
    return "hh" if whole_text and _prompt_column(record) is None else "pairs"


def extract_comparison(record: Record, format: str) -> RawComparison:
    """Read a record's answers and their order, without checking the messages.

    Raises:
        Refused: a column is missing or holds something else, or the answers aren't to one prompt.
    """
    if matching_columns(record, COLUMNS[format]) is None:
        needed = " or ".join(", ".join(way) for way in COLUMNS[format][:2])
        known = ", ".join(sorted(map(str, record))[:8]) or "none"
        raise Refused("format", f"expected the format {format!r}: {needed} (has {known})")
    return _READERS[format](record)


def _pairs(record: Record) -> RawComparison:
    way = matching_columns(record, COLUMNS["pairs"])
    assert way is not None, "extract_comparison has checked the columns"
    # These columns are tried in the order of COLUMNS, so a plain pair wins over a continued one.
    if way in CONTINUED:
        return _continuing_pair(record, way)
    column = _prompt_column(record)
    if way in STRENGTHS:
        prompt, read = _prompt(record, column)
        strength = _number(record[way[2]], way[2], -MOST)
        answers = [_messages(record[name], "assistant", name) for name in way[:2]]
        # A negative strength means that the first answer is better.
        quality = (-strength, 0.0)
        return RawComparison(
            prompt, _without_prompt(prompt, answers), way[:2], quality, None, (*read, *way)
        )
    texts = [isinstance(record[name], str) for name in way]
    if column is None and any(texts):
        raise Refused(
            "format",
            "there is no prompt, and the answers are text: expected a column 'prompt', or lists "
            "of messages (text of the form Human:, Assistant: is data.format=hh)",
        )
    answers = [_messages(record[name], "assistant", name) for name in way]
    whole = not any(texts) and all(turns[0].get("role") in ("system", "user") for turns in answers)
    if column is None or (whole and _is_repeated(record, column, answers[0])):
        return _split_common(record, answers[0], answers[1], way)
    prompt, read = _prompt(record, column)
    better, worse = _without_prompt(prompt, answers)
    return _judged_pair(record, prompt, better, worse, (*read, *way))


def _continuing_pair(record: Record, way: tuple[str, ...]) -> RawComparison:
    """Read a whole conversation that ends with the better answer, and the worse answer."""
    conversation = to_messages(record[way[0]], way[0])
    if way[1] == "rejected_messages":
        return _split_common(
            record, conversation, _messages(record[way[1]], "assistant", way[1]), way
        )
    history_messages(record, beside_text=False)
    *before, better = with_system(record, conversation) or [{}]
    if better.get("role") != "assistant":
        raise Refused(
            "prompt", f"{way[0]} doesn't end with the better answer, a turn of the assistant"
        )
    worse = _messages(record[way[1]], "assistant", way[1])
    return _judged_pair(record, before, [better], worse, way)


def _hh(record: Record) -> RawComparison:
    chosen, rejected = (
        transcript_to_messages(record[name], name) for name in ("chosen", "rejected")
    )
    return _split_common(record, chosen, rejected, ("chosen", "rejected"))


def _rankings(record: Record) -> RawComparison:
    if record.get("prompt") is not None and record.get("messages") is not None:
        raise Refused("format", "has both 'prompt' and 'messages'; expected one of them")
    column = next(name for name in _ENTRIES if record.get(name) is not None)
    judged, answers, numbers = _ranked(record, column)
    for value, name in ((answers, column), (numbers, judged)):
        if not isinstance(value, list):
            raise Refused("type", f"column {name!r} holds {json_type(value)}, expected a list")
    if not 2 <= len(answers) <= MOST_ANSWERS or len(numbers) != len(answers):
        raise Refused(
            "format",
            f"{len(answers)} answers and {len(numbers)} {judged}; expected equally many, from 2 "
            f"to {MOST_ANSWERS}",
        )
    prompt, read = _prompt(record, _prompt_column(record))
    names = tuple(f"answer {number}" for number in range(1, len(answers) + 1))
    listed = [
        _messages(answer, "assistant", name) for answer, name in zip(answers, names, strict=True)
    ]
    values = [
        _number(value, f"{judged}, {name}", -MOST)
        for value, name in zip(numbers, names, strict=True)
    ]
    scored = judged not in ("ranks", "rank")
    quality = tuple(values) if scored else tuple(-rank for rank in values)
    margin = None if scored else 0.0
    read = (*read, column, *_JUDGED)
    return RawComparison(prompt, _without_prompt(prompt, listed), names, quality, margin, read)


def _ranked(record: Record, column: str) -> tuple[str, Any, Any]:
    """Return the name of the ranks or scores, the answers and the numbers, from columns or keys of answers."""
    columns = [name for name in _JUDGED if record.get(name) is not None]
    if len(columns) == 2:
        raise Refused("format", "has both 'ranks' and 'scores'; expected one of them")
    answers = record[column]
    if columns:
        return columns[0], answers, record[columns[0]]
    entries = answers if isinstance(answers, list) else []
    for judged in _ENTRY_RANKS:
        for answer in _ENTRY_ANSWERS:
            if entries and all(
                isinstance(entry, Mapping) and {judged, answer} <= entry.keys() for entry in entries
            ):
                texts = [entry[answer] for entry in entries]
                return judged, texts, [entry[judged] for entry in entries]
    known = ", ".join(sorted(map(str, record))[:8])
    raise Refused(
        "format",
        f"no column ranks the {column} (expected rankings: prompt, {column}, ranks or prompt, "
        f"{column}, scores or objects in {column!r} with one of {', '.join(_ENTRY_RANKS)} together with one of "
        f"{', '.join(_ENTRY_ANSWERS)}; has {known})",
    )


def _prompt_column(record: Record) -> str | None:
    return next((name for name in PROMPTS if record.get(name) is not None), None)


def _prompt(record: Record, column: str | None) -> tuple[list[Message], tuple[str, ...]]:
    """Return the prompt, after a system column and the history, and the columns that were read."""
    if column is None:
        raise Refused("format", f"there is no prompt: expected a column {' or '.join(PROMPTS)}")
    value, other = record[column], ""
    if isinstance(value, str):
        value, other = question_text(record, column)
    messages = _messages(value, "user", column)
    history = history_messages(record, beside_text=isinstance(value, str))
    return with_system(record, [*history, *messages]), (column, other)


def _is_repeated(record: Record, column: str, conversation: list[Message]) -> bool:
    """Tell whether whole conversations repeat the prompt of a column, but not only at their beginning."""
    if column in ("messages", "conversations"):
        return True
    prompt = _messages(record[column], "user", column)
    contents = [message.get("content") for message in conversation]
    # A prompt that is only the beginning is removed from the answers in the usual way.
    begins = all(map(_same, prompt, conversation))
    return not begins and all(message.get("content") in contents for message in prompt)


def _split_common(
    record: Record, chosen: list[Message], rejected: list[Message], read: Sequence[str]
) -> RawComparison:
    """Read two whole conversations, whose common beginning is the prompt."""
    chosen, rejected = with_system(record, chosen), with_system(record, rejected)
    history_messages(record, beside_text=False)
    common = 0
    for first, second in zip(chosen, rejected, strict=False):
        if not _same(first, second):
            break
        common += 1
    if common == len(chosen) == len(rejected):
        # Equal answers are refused later, when they are encoded.
        common = max(0, common - 1)
    # Without a common message there is no prompt that both answers could belong to.
    elif not common:
        raise Refused("prompt", "chosen and rejected have no common beginning to be the prompt")
    else:
        for conversation, name in ((chosen, "chosen"), (rejected, "rejected")):
            role = conversation[common].get("role") if common < len(conversation) else "end"
            if role != "assistant":
                raise Refused(
                    "prompt",
                    f"chosen and rejected differ from message {common + 1} on, which is {name}'s {role}; "
                    "expected answers of the assistant to the same prompt",
                )
    return _judged_pair(record, chosen[:common], chosen[common:], rejected[common:], read)


def _judged_pair(
    record: Record,
    prompt: list[Message],
    chosen: list[Message],
    rejected: list[Message],
    read: Sequence[str],
) -> RawComparison:
    tie, margin = record.get("tie"), record.get("margin")
    if tie is not None and not isinstance(tie, bool):
        raise Refused("type", f"tie is {json_type(tie)}, expected true or false")
    return RawComparison(
        prompt,
        [chosen, rejected],
        ("chosen", "rejected"),
        (0.0, 0.0) if tie else (1.0, 0.0),
        0.0 if margin is None else _number(margin, "margin", 0.0),
        (*read, "margin", "tie"),
    )


def _without_prompt(prompt: list[Message], answers: list[list[Message]]) -> list[list[Message]]:
    """Return answers without the prompt, if all begin with it, or with it except for its system message."""
    # Answers often repeat the prompt without the system message of a column.
    begins_with_system = bool(prompt) and prompt[0].get("role") == "system"
    for repeated in (prompt, prompt[1:]) if begins_with_system else (prompt,):
        length = len(repeated)
        if all(
            len(answer) > length and all(map(_same, repeated, answer[:length]))
            for answer in answers
        ):
            return [answer[length:] for answer in answers]
    return answers


def _same(first: Message, second: Message) -> bool:
    keys = ("role", "content", "tool_calls", *THINKING)
    return all((first.get(key) or None) == (second.get(key) or None) for key in keys)


def _messages(value: object, role: str, name: str) -> list[Message]:
    """Return text as messages of a role, or one message, or a list of messages."""
    if isinstance(value, str):
        return prompt_to_messages(value) if role == "user" else [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise Refused("type", f"{name} is {json_type(value)}, expected text or a list of messages")
    if not value:
        raise Refused("empty", f"{name} holds no messages")
    return to_messages(value, name)


def _number(value: Any, name: str, least: float) -> float:
    # NaN fails the comparison below, so it is refused as well.
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not least <= value <= MOST:
        raise Refused("type", f"{name} is {value!r}, expected a number from {least:g} to {MOST:g}")
    return float(value)


_READERS: dict[str, Callable[[Record], RawComparison]] = {
    "pairs": _pairs,
    "hh": _hh,
    "rankings": _rankings,
}
