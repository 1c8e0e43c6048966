"""Ways in which data sets write down which answer people preferred.

- `pairs`: `{"prompt", "chosen", "rejected"}`, texts or lists of messages; lists that begin with the
  prompt, or with the same messages where there is no prompt, are whole conversations. The prompt may stand
  under other names, and so may the answers (ANSWERS);
- `hh`: Anthropic's `{"chosen", "rejected"}`, whole conversations as text: `\\n\\nHuman: …\\n\\nAssistant: …`;
- `rankings`: `{"prompt" | …, "answers", "ranks" | "scores"}`, or answers that hold their ranks themselves.

What the messages hold is checked in `comparison.py`; here only the outer form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymill.data.messages.formats import asked_text, found_columns
from raymill.data.messages.keys import THINKING
from raymill.data.messages.message_list import (
    Message,
    as_messages,
    asked_messages,
    history_messages,
    human_turns,
    kind_of,
    with_system,
)
from raymill.data.messages.problems import Refused

# Columns of the better and the worse answer.
ANSWERS = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"), ("response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
)  # fmt: skip
# Whole conversations that end with the better answer, beside the worse one.
CONTINUED = (
    ("messages", "rejected_response"), ("conversations", "rejected_response"),
    ("messages", "rejected_messages"),
)  # fmt: skip
# Two answers and a number: below 0 the first is better, above 0 the second, 0 is a tie.
STRENGTHS = (
    ("response_1", "response_2", "preference_strength"), ("response1", "response2", "overall_preference"),
)  # fmt: skip
# What is asked, where answers don't repeat it; the first that a record has.
ASKED = (
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
        *((asked, "answers", judged) for asked in ("prompt", "messages") for judged in _JUDGED),
        *((asked, entries) for asked in ASKED for entries in _ENTRIES),
    ),
}  # fmt: skip
FORMATS = tuple(COLUMNS)
MOST_ANSWERS = 64  # of a ranking, which becomes nearly half the square of it in pairs
MOST = 1e6  # of a margin or a score: they are stored in 32 bits


@dataclass(frozen=True)
class Stated:
    """What a record says of k ≥ 2 answers to one prompt, its messages not yet checked.

    `quality[k]`: higher is better, equal is a tie. `margin`: by how much the better one is better, 0 where
    that isn't said; None: by the difference in quality. `read`: the columns that it was made of.
    """

    prompt: list[Message]
    answers: list[list[Message]]
    names: tuple[str, ...]  # of the answers, for messages about them
    quality: tuple[float, ...]
    margin: float | None = 0.0
    read: tuple[str, ...] = ()


def detect_format(record: Mapping[str, Any]) -> str | None:
    """Which of FORMATS a record's columns are (a null counts as missing), or None."""
    if record.get("answers") is not None:
        return "rankings"
    found = found_columns(record, COLUMNS["pairs"])
    if found is None:
        return "rankings" if record.get("completions") is not None else None
    whole_text = found == ("chosen", "rejected") and isinstance(record["chosen"], str)
    return "hh" if whole_text and _asked_column(record) is None else "pairs"


def stated(record: Mapping[str, Any], format: str) -> Stated:
    """A record's answers and their order.

    Raises:
        Refused: a column is missing or holds something else, or the answers aren't to one prompt.
    """
    if found_columns(record, COLUMNS[format]) is None:
        needed = " or ".join(", ".join(way) for way in COLUMNS[format][:2])
        known = ", ".join(sorted(map(str, record))[:8]) or "none"
        raise Refused("format", f"expected the format {format!r}: {needed} (has {known})")
    return _READERS[format](record)


def _pairs(record: Mapping[str, Any]) -> Stated:
    way = found_columns(record, COLUMNS["pairs"])
    assert way is not None  # `stated` has looked
    if way in CONTINUED:
        return _continuing_pair(record, way)
    asked = _asked_column(record)
    if way in STRENGTHS:
        prompt, read = _prompt(record, asked)
        strength = _number(record[way[2]], way[2], -MOST)
        answers = [_said(record[name], "assistant", name) for name in way[:2]]
        quality = (-strength, 0.0)
        return Stated(prompt, _continued(prompt, answers), way[:2], quality, None, (*read, *way))
    texts = [isinstance(record[name], str) for name in way]
    if asked is None and any(texts):
        raise Refused(
            "format",
            "there is no prompt, and the answers are text: expected a column 'prompt', or lists "
            "of messages (text of the form Human:, Assistant: is data.format=hh)",
        )
    answers = [_said(record[name], "assistant", name) for name in way]
    whole = not any(texts) and all(one[0].get("role") in ("system", "user") for one in answers)
    if asked is None or (whole and _is_repeated(record, asked, answers[0])):
        return _parted(record, answers[0], answers[1], way)
    prompt, read = _prompt(record, asked)
    better, worse = _continued(prompt, answers)
    return _judged_pair(record, prompt, better, worse, (*read, *way))


def _continuing_pair(record: Mapping[str, Any], way: tuple[str, ...]) -> Stated:
    """A whole conversation that ends with the better answer, beside the worse one."""
    conversation = as_messages(record[way[0]], way[0])
    if way[1] == "rejected_messages":
        return _parted(record, conversation, _said(record[way[1]], "assistant", way[1]), way)
    history_messages(record, beside_text=False)
    *before, better = with_system(record, conversation) or [{}]
    if better.get("role") != "assistant":
        raise Refused(
            "prompt", f"{way[0]} doesn't end with the assistant's turn, the better answer"
        )
    worse = _said(record[way[1]], "assistant", way[1])
    return _judged_pair(record, before, [better], worse, way)


def _hh(record: Mapping[str, Any]) -> Stated:
    chosen, rejected = (human_turns(record[name], name) for name in ("chosen", "rejected"))
    return _parted(record, chosen, rejected, ("chosen", "rejected"))


def _rankings(record: Mapping[str, Any]) -> Stated:
    if record.get("prompt") is not None and record.get("messages") is not None:
        raise Refused("format", "has both 'prompt' and 'messages'; expected one of them")
    column = next(name for name in _ENTRIES if record.get(name) is not None)
    judged, answers, numbers = _ranked(record, column)
    for value, name in ((answers, column), (numbers, judged)):
        if not isinstance(value, list):
            raise Refused("type", f"column {name!r} holds {kind_of(value)}, expected a list")
    if not 2 <= len(answers) <= MOST_ANSWERS or len(numbers) != len(answers):
        raise Refused(
            "format",
            f"{len(answers)} answers and {len(numbers)} {judged}; expected equally many, from 2 "
            f"to {MOST_ANSWERS}",
        )
    prompt, read = _prompt(record, _asked_column(record))
    names = tuple(f"answer {number}" for number in range(1, len(answers) + 1))
    said = [_said(answer, "assistant", name) for answer, name in zip(answers, names, strict=True)]
    found = [
        _number(value, f"{judged}, {name}", -MOST)
        for value, name in zip(numbers, names, strict=True)
    ]
    scored = judged not in ("ranks", "rank")
    quality = tuple(found) if scored else tuple(-rank for rank in found)
    margin = None if scored else 0.0
    read = (*read, column, *_JUDGED)
    return Stated(prompt, _continued(prompt, said), names, quality, margin, read)


def _ranked(record: Mapping[str, Any], column: str) -> tuple[str, Any, Any]:
    """Return what ranks or scores the answers, these, and the numbers: columns, or keys of each answer."""
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
                isinstance(one, Mapping) and {judged, answer} <= one.keys() for one in entries
            ):
                return judged, [one[answer] for one in entries], [one[judged] for one in entries]
    known = ", ".join(sorted(map(str, record))[:8])
    raise Refused(
        "format",
        f"nothing says which of the {column} is better (expected rankings: prompt, {column}, ranks or prompt, "
        f"{column}, scores or objects in {column!r} with one of {', '.join(_ENTRY_RANKS)} beside one of "
        f"{', '.join(_ENTRY_ANSWERS)}; has {known})",
    )


def _asked_column(record: Mapping[str, Any]) -> str | None:
    return next((name for name in ASKED if record.get(name) is not None), None)


def _prompt(record: Mapping[str, Any], column: str | None) -> tuple[list[Message], tuple[str, ...]]:
    """Return what is asked, after a system column and the history; and the columns that were read."""
    if column is None:
        raise Refused("format", f"there is no prompt: expected a column {' or '.join(ASKED)}")
    value, more = record[column], ""
    if isinstance(value, str):
        value, more = asked_text(record, column)
    asked = _said(value, "user", column)
    history = history_messages(record, beside_text=isinstance(value, str))
    return with_system(record, [*history, *asked]), (column, more)


def _is_repeated(record: Mapping[str, Any], column: str, conversation: list[Message]) -> bool:
    """Tell whether whole conversations hold what is asked in a column, though not at their beginning alone."""
    if column in ("messages", "conversations"):
        return True
    asked = _said(record[column], "user", column)
    contents = [message.get("content") for message in conversation]
    begins = all(map(_same, asked, conversation))
    return not begins and all(message.get("content") in contents for message in asked)


def _parted(
    record: Mapping[str, Any], chosen: list[Message], rejected: list[Message], read: Sequence[str]
) -> Stated:
    """Two whole conversations, of which the common beginning is the prompt."""
    chosen, rejected = with_system(record, chosen), with_system(record, rejected)
    history_messages(record, beside_text=False)
    common = 0
    for one, other in zip(chosen, rejected, strict=False):
        if not _same(one, other):
            break
        common += 1
    if common == len(chosen) == len(rejected):  # what is wrong with that is said later
        common = max(0, common - 1)
    elif not common:
        raise Refused("prompt", "chosen and rejected have no common beginning to be the prompt")
    else:
        for side, name in ((chosen, "chosen"), (rejected, "rejected")):
            found = side[common].get("role") if common < len(side) else "end"
            if found != "assistant":
                raise Refused(
                    "prompt",
                    f"chosen and rejected part at message {common + 1}, which is {name}'s {found}; "
                    "expected answers of the assistant to the same prompt",
                )
    return _judged_pair(record, chosen[:common], chosen[common:], rejected[common:], read)


def _judged_pair(
    record: Mapping[str, Any],
    prompt: list[Message],
    chosen: list[Message],
    rejected: list[Message],
    read: Sequence[str],
) -> Stated:
    tie, margin = record.get("tie"), record.get("margin")
    if tie is not None and not isinstance(tie, bool):
        raise Refused("type", f"tie is {kind_of(tie)}, expected true or false")
    return Stated(
        prompt,
        [chosen, rejected],
        ("chosen", "rejected"),
        (0.0, 0.0) if tie else (1.0, 0.0),
        0.0 if margin is None else _number(margin, "margin", 0.0),
        (*read, "margin", "tie"),
    )


def _continued(asked: list[Message], answers: list[list[Message]]) -> list[list[Message]]:
    """Answers without the prompt, where all of them repeat it, or it without the system's message, at their
    beginning."""
    begins_with_system = bool(asked) and asked[0].get("role") == "system"
    for repeated in (asked, asked[1:]) if begins_with_system else (asked,):
        length = len(repeated)
        if all(
            len(answer) > length and all(map(_same, repeated, answer[:length]))
            for answer in answers
        ):
            return [answer[length:] for answer in answers]
    return answers


def _same(one: Message, other: Message) -> bool:
    keys = ("role", "content", "tool_calls", *THINKING)
    return all((one.get(key) or None) == (other.get(key) or None) for key in keys)


def _said(value: object, role: str, name: str) -> list[Message]:
    """Text as messages of a role, one message, or a list of messages."""
    if isinstance(value, str):
        return asked_messages(value) if role == "user" else [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise Refused("type", f"{name} is {kind_of(value)}, expected text or a list of messages")
    if not value:
        raise Refused("empty", f"{name} holds no messages")
    return as_messages(value, name)


def _number(value: Any, name: str, least: float) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not least <= value <= MOST:
        raise Refused("type", f"{name} is {value!r}, expected a number from {least:g} to {MOST:g}")
    return float(value)


_READERS: dict[str, Callable[[Mapping[str, Any]], Stated]] = {
    "pairs": _pairs,
    "hh": _hh,
    "rankings": _rankings,
}
