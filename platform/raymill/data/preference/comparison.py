"""One comparison, read from any known format and checked: answers to one prompt, and which is better.

Every record becomes a `Comparison` or a `Problem`; nothing is repaired silently. Each answer is checked as
the conversation that it makes with its prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raymill.data.messages import problems
from raymill.data.messages.conversation import Conversation, read_conversation
from raymill.data.messages.formats import BESIDE, beside
from raymill.data.messages.keys import COLUMN, UnusedKeys, refuse_altering
from raymill.data.messages.message_list import kind_of
from raymill.data.messages.problems import Problem, Refused
from raymill.data.preference.formats import FORMATS, Stated, detect_format, stated
from raymill.durable import canonical_json
from raymill.errors import DataError

__all__ = ["CAUSES", "FORMATS", "Comparison", "Pair", "read_comparison"]

CAUSES = (
    *problems.CAUSES,
    "prompt",  # the answers aren't answers to the same prompt
    "same",  # an answer was preferred to itself
)


@dataclass(frozen=True)
class Pair:
    """Numbers of the better and the worse answer; `margin`: by how much, 0: unknown."""

    better: int
    worse: int
    margin: float


@dataclass(frozen=True)
class Comparison:
    """Checked answers to one prompt; each is a conversation whose `given` messages are the prompt.

    `ties` are numbers of answers that were judged equally good; `annotator` is who judged, if that is
    known; `unused` are the names of what the record held beside, and nobody read.
    """

    answers: tuple[Conversation, ...]
    names: tuple[str, ...]  # of the answers, for messages about them
    pairs: tuple[Pair, ...]
    ties: tuple[tuple[int, int], ...]
    annotator: str | None = None
    unused: tuple[str, ...] = field(default=(), compare=False)

    @property
    def weight(self) -> float:
        """Of the comparison's loss, above 0."""
        return self.answers[0].weight

    @property
    def first_user(self) -> str:
        """The prompt's first user message: groups what must not be split."""
        return self.answers[0].first_user

    @property
    def prompt_key(self) -> str:
        """Equal for equal prompts: their messages and tools."""
        one = self.answers[0]
        return canonical_json([list(one.messages[: one.given]), one.tools and list(one.tools)])


def read_comparison(record: Any, format: str | None = None) -> Comparison | Problem:
    """A record as a comparison, or what is wrong with it. `format`: one of FORMATS, or detected.

    A prompt is known by what it says, not by an id. Keys that would change what is learned, and that no
    format knows, are refused; others are `unused`.

    Raises:
        DataError: no such format.
    """
    if format is not None and format not in FORMATS:
        raise DataError(
            f"{format!r} isn't a format of preferences; expected one of {', '.join(FORMATS)}."
        )
    try:
        if not isinstance(record, Mapping):
            raise Refused("type", f"expected an object, found {kind_of(record)}")
        found = format or detect_format(record)
        if found is None:
            columns = ", ".join(sorted(map(str, record))[:8]) or "none"
            raise Refused(
                "format",
                f"none of the formats {', '.join(FORMATS)} (has {columns}){_about_feedback(record)}",
            )
        refuse_altering(record, "column", "record")
        said = stated(record, found)
        answers = tuple(_answer(record, said, number) for number in range(len(said.answers)))
        pairs, ties = _order(said)
        annotator = _annotator(record.get("annotator"))
        return Comparison(
            answers, said.names, pairs, ties, annotator, _unused(record, said, answers)
        )
    except Refused as refused:
        return refused.problem


def _answer(record: Mapping[str, Any], said: Stated, number: int) -> Conversation:
    """The prompt with one answer; the prompt ends where the assistant's turn begins."""
    name = said.names[number]
    if not said.prompt:
        raise Refused("empty", "the prompt holds no messages")
    whole = {
        "prompt": said.prompt,
        "completion": said.answers[number],
        "tools": record.get("tools"),
        "weight": record.get("weight"),
    }
    found = read_conversation(whole, "prompt_completion")
    if isinstance(found, Problem):
        raise Refused(found.cause, f"prompt and {name}: {found.why}")
    before = found.messages[found.given - 1]["role"]
    if before not in ("user", "tool"):
        raise Refused("order", f"the prompt ends with the {before}, expected user or tool")
    after = found.messages[found.given]["role"]
    if after != "assistant":
        raise Refused("order", f"{name} begins with the {after}, expected assistant")
    return found


def _unused(
    record: Mapping[str, Any], said: Stated, answers: Sequence[Conversation]
) -> tuple[str, ...]:
    messages = [message for answer in answers for message in answer.messages]
    unused = UnusedKeys()
    unused.note(beside(record, (*said.read, *BESIDE, "annotator"), messages), ("text",), COLUMN)
    names = (name for answer in answers for name in answer.unused)
    return tuple(dict.fromkeys((*unused.names, *names)))


def _about_feedback(record: Mapping[str, Any]) -> str:
    held = [name for name in ("label", "kto_tag") if record.get(name) is not None]
    if not held:
        return ""
    return (
        f": a {held[0]!r} beside one answer is unpaired feedback, which is compared with nothing; make pairs "
        "of good and bad answers to one prompt"
    )


def _order(said: Stated) -> tuple[tuple[Pair, ...], tuple[tuple[int, int], ...]]:
    """All pairs of different quality, the better first, and all that are tied."""
    pairs, ties = [], []
    quality = said.quality
    for one in range(len(quality)):
        for other in range(one + 1, len(quality)):
            if quality[one] == quality[other]:
                ties.append((one, other))
                continue
            better, worse = (one, other) if quality[one] > quality[other] else (other, one)
            by = quality[better] - quality[worse] if said.margin is None else said.margin
            pairs.append(Pair(better, worse, by))
    return tuple(pairs), tuple(ties)


def _annotator(value: object) -> str | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise Refused("type", f"annotator is {kind_of(value)}, expected text or an integer")
    return str(value)
