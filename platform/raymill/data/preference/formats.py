"""Three ways in which data sets write down which answer people preferred.

- `pairs`: `{"prompt", "chosen", "rejected"}`, texts or lists of messages; lists that begin with the
  prompt, or with the same messages where there is no prompt, are whole conversations;
- `hh`: Anthropic's `{"chosen", "rejected"}`, whole conversations as text: `\\n\\nHuman: …\\n\\nAssistant: …`;
- `rankings`: `{"prompt" | "messages", "answers", "ranks" | "scores"}`.

What the messages hold is checked in `comparison.py`; here only the outer form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raymill.data.chat.formats import kind_of
from raymill.data.chat.problems import Refused

# Format → the sets of columns of which it needs one whole.
COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {
    "pairs": (("chosen", "rejected"),),
    "hh": (("chosen", "rejected"),),
    "rankings": tuple(
        (asked, "answers", judged) for asked in ("prompt", "messages") for judged in ("ranks", "scores")
    ),
}  # fmt: skip
FORMATS = tuple(COLUMNS)
MOST_ANSWERS = 64  # of a ranking, which becomes nearly half the square of it in pairs
MOST = 1e6  # of a margin or a score: they are stored in 32 bits

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Stated:
    """What a record says of k ≥ 2 answers to one prompt, its messages not yet checked.

    `quality[k]`: higher is better, equal is a tie. `margin`: by how much the better one is better, 0 where
    that isn't said; None: by the difference in quality.
    """

    prompt: list[Message]
    answers: list[list[Message]]
    names: tuple[str, ...]  # of the answers, for messages about them
    quality: tuple[float, ...]
    margin: float | None = 0.0


def detect_format(record: Mapping[str, Any]) -> str | None:
    """Which of FORMATS a record's columns are (a null counts as missing), or None."""
    if record.get("answers") is not None:
        return "rankings"
    if record.get("chosen") is None or record.get("rejected") is None:
        return None
    whole_text = record.get("prompt") is None and isinstance(record["chosen"], str)
    return "hh" if whole_text else "pairs"


def stated(record: Mapping[str, Any], format: str) -> Stated:
    """A record's answers and their order.

    Raises:
        Refused: a column is missing or holds something else, or the answers aren't to one prompt.
    """
    if not any(all(record.get(name) is not None for name in way) for way in COLUMNS[format]):
        needed = " or ".join(", ".join(way) for way in COLUMNS[format])
        known = ", ".join(sorted(map(str, record))[:8]) or "none"
        raise Refused("format", f"expected the format {format!r}: {needed} (has {known})")
    return _READERS[format](record)


def _pairs(record: Mapping[str, Any]) -> Stated:
    prompt = record.get("prompt")
    if prompt is None:
        if isinstance(record["chosen"], str) or isinstance(record["rejected"], str):
            raise Refused(
                "format",
                "there is no prompt, and the answers are text: expected a column 'prompt', or lists "
                "of messages (text of the form Human:, Assistant: is data.format=hh)",
            )
        conversations = [_messages(record[name], name) for name in ("chosen", "rejected")]
        return _parted(record, *conversations)
    asked = _said(prompt, "user", "prompt")
    answers = [_said(record[name], "assistant", name) for name in ("chosen", "rejected")]
    return _judged_pair(record, asked, *_continued(asked, answers))


def _hh(record: Mapping[str, Any]) -> Stated:
    return _parted(record, *(_turns(record[name], name) for name in ("chosen", "rejected")))


def _rankings(record: Mapping[str, Any]) -> Stated:
    by_prompt = record.get("prompt") is not None
    judged = [name for name in ("ranks", "scores") if record.get(name) is not None]
    if by_prompt and record.get("messages") is not None:
        raise Refused("format", "has both 'prompt' and 'messages'; expected one of them")
    if len(judged) != 1:
        raise Refused("format", "has both 'ranks' and 'scores'; expected one of them")
    asked = (
        _said(record["prompt"], "user", "prompt")
        if by_prompt
        else _messages(record["messages"], "messages")
    )
    answers, numbers = record["answers"], record[judged[0]]
    for value, name in ((answers, "answers"), (numbers, judged[0])):
        if not isinstance(value, list):
            raise Refused("type", f"column {name!r} holds {kind_of(value)}, expected a list")
    if not 2 <= len(answers) <= MOST_ANSWERS or len(numbers) != len(answers):
        raise Refused(
            "format",
            f"{len(answers)} answers and {len(numbers)} {judged[0]}; expected equally many, from 2 "
            f"to {MOST_ANSWERS}",
        )
    names = tuple(f"answer {number}" for number in range(1, len(answers) + 1))
    said = [_said(answer, "assistant", name) for answer, name in zip(answers, names, strict=True)]
    found = [
        _number(value, f"{judged[0]}, {name}", -MOST)
        for value, name in zip(numbers, names, strict=True)
    ]
    if judged == ["scores"]:
        return Stated(asked, _continued(asked, said), names, tuple(found), margin=None)
    return Stated(asked, _continued(asked, said), names, tuple(-rank for rank in found))


def _parted(record: Mapping[str, Any], chosen: list[Message], rejected: list[Message]) -> Stated:
    """Two whole conversations, of which the common beginning is the prompt."""
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
    return _judged_pair(record, chosen[:common], chosen[common:], rejected[common:])


def _judged_pair(
    record: Mapping[str, Any], prompt: list[Message], chosen: list[Message], rejected: list[Message]
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
    )


def _turns(text: object, name: str) -> list[Message]:
    """The messages of a text in which turns begin with a blank line and who speaks."""
    if not isinstance(text, str):
        raise Refused("type", f"column {name!r} holds {kind_of(text)}, expected text")
    before, *turns = _TURN.split(text)
    if before.strip() or not turns:
        raise Refused(
            "format",
            f"{name}: expected text that begins with 'Human:', found {text.strip()[:40]!r}",
        )
    return [
        {"role": _ROLES[who], "content": said.strip()}
        for who, said in zip(turns[::2], turns[1::2], strict=True)
    ]


def _continued(asked: list[Message], answers: list[list[Message]]) -> list[list[Message]]:
    """Answers without the prompt, where all of them repeat it at their beginning."""
    length = len(asked)
    repeated = all(
        len(answer) > length and all(map(_same, asked, answer[:length])) for answer in answers
    )
    return [answer[length:] for answer in answers] if repeated else answers


def _same(one: Message, other: Message) -> bool:
    return all(one.get(key) == other.get(key) for key in ("role", "content", "tool_calls"))


def _said(value: object, role: str, name: str) -> list[Message]:
    """Text as one message of a role, or a list of messages."""
    return [{"role": role, "content": value}] if isinstance(value, str) else _messages(value, name)


def _messages(value: object, name: str) -> list[Message]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Refused("type", f"{name} is {kind_of(value)}, expected text or a list of messages")
    for number, item in enumerate(value, 1):
        if not isinstance(item, Mapping):
            raise Refused(
                "type", f"{name}: message {number} is {kind_of(item)}, expected an object"
            )
    if not value:
        raise Refused("empty", f"{name} holds no messages")
    return list(value)


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
