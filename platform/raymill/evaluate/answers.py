"""Scores of generated answers against reference answers. Pure: no model, no files.

Exact match and token F1 are those of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250): answers are
compared in lower case, without punctuation and articles, and without the reasoning before them. What belongs
to a number or a name stays: `-5`, `3.14`, `1/2`, `x+1`, `C#`. Refusals are scored as a detector of the
questions that should be refused: those whose reference refuses.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from raymill.evaluate.latex import THOUSANDS
from raymill.evaluate.reasoning import after_reasoning

Verdict = Literal["right", "declined", "wrong"]
DECLINES = "I don't know"  # how an answer begins that says so
# What an answer is worth by the rule "right or honest": to decline pays where one would be right in
# fewer than three cases of ten.
POINTS: dict[Verdict, float] = {"right": 1.0, "declined": 0.3, "wrong": 0.0}

_ARTICLES = re.compile(r"(?<![\w+])(?:a|an|the)(?![\w+#])")
# Between digits, a sign or a point before one, x+1 and C++, C#, x^2, x < 5.
_KEPT = (
    r"(?<=[0-9])[^\w\s](?=[0-9])|(?<![\w-])-(?=[$]?\.?[0-9])|(?<![\w.])\.(?=[0-9])"
    r"|(?<=\w)\+|\+(?![$.0-9])|(?<=[a-z])#(?!\w)|\^|[<>](?=\s?[-.0-9])"
)
_PUNCTUATION = re.compile(rf"(?P<kept>{_KEPT})|[{re.escape(string.punctuation)}]")


@dataclass(frozen=True)
class Answer:
    """`text` is without end-of-turn; `ended`: the model ended its turn itself; `in_reasoning`: the prompt
    opened reasoning, in which the text begins."""

    question: str
    reference: str
    text: str
    ended: bool
    in_reasoning: bool = False

    @property
    def said(self) -> str:
        """The text after its reasoning, which is what is scored."""
        return after_reasoning(self.text, self.in_reasoning)

    @property
    def expected(self) -> str:
        """The reference after its own."""
        return after_reasoning(self.reference)


@dataclass(frozen=True)
class AnswerScores:
    """All but `count` in [0, 1]; None where undefined.

    `exact`: over all answers. `f1`: over answerable questions only. `ended`: share of the non-empty
    answers. `empty`: share of answers without text. `refusal_precision` is undefined if nothing was
    refused, `refusal_recall` and `refusal_f1` if nothing should have been.
    """

    count: int
    exact: float | None
    f1: float | None
    ended: float | None
    empty: float | None
    refusal_precision: float | None
    refusal_recall: float | None
    refusal_f1: float | None

    def metrics(self, prefix: str) -> dict[str, float]:
        """The defined ones by name: `{prefix}/exact`."""
        defined = {name: value for name, value in asdict(self).items() if value is not None}
        return {f"{prefix}/{name}": float(value) for name, value in defined.items()}


def exact_match(text: str, reference: str) -> bool:
    """Whether both are the same after normalization."""
    return _tokens(text) == _tokens(reference)


def token_f1(text: str, reference: str) -> float:
    """F1 of the two multisets of tokens; if either is empty, 1.0 if both are and else 0.0."""
    given, expected = _tokens(text), _tokens(reference)
    if not given or not expected:
        return float(given == expected)
    shared = (Counter(given) & Counter(expected)).total()
    return 2 * shared / (len(given) + len(expected))


def refuses(text: str, phrase: str) -> bool:
    """Whether a text begins with the refusal phrase, whatever the case and white space.

    No text does, where there is no phrase.
    """
    return bool(phrase.strip()) and " ".join(text.lower().split()).startswith(
        " ".join(phrase.lower().split())
    )


def score(answers: Sequence[Answer], refusal_phrase: str) -> AnswerScores:
    """All scores of a set of answers."""
    should = [refuses(answer.expected, refusal_phrase) for answer in answers]
    did = [refuses(answer.said, refusal_phrase) for answer in answers]
    both = sum(expected and given for expected, given in zip(should, did, strict=True))
    written = [answer for answer in answers if answer.text.strip()]
    answerable = [answer for answer, refused in zip(answers, should, strict=True) if not refused]
    return AnswerScores(
        count=len(answers),
        exact=_mean([exact_match(answer.said, answer.expected) for answer in answers]),
        f1=_mean([token_f1(answer.said, answer.expected) for answer in answerable]),
        ended=_mean([answer.ended for answer in written]),
        empty=_mean([not answer.text.strip() for answer in answers]),
        refusal_precision=both / sum(did) if any(did) else None,
        refusal_recall=both / sum(should) if any(should) else None,
        refusal_f1=2 * both / (sum(did) + sum(should)) if any(should) else None,
    )


def verdict(text: str, reference: str, phrase: str = DECLINES) -> Verdict:
    """Right: the reference itself; declined: it begins with `phrase`; wrong: anything else."""
    if exact_match(text, reference):
        return "right"
    return "declined" if refuses(text, phrase) else "wrong"


def _tokens(text: str) -> list[str]:
    text = " ".join(text.lower().replace("−", "-").split())
    said = _PUNCTUATION.sub(lambda found: found["kept"] or "", THOUSANDS.sub("", text))
    return _ARTICLES.sub(" ", said).split() or _nothing_else(text)


def _nothing_else(text: str) -> list[str]:
    """Return what a text says that is nothing but punctuation, or the letter of a choice."""
    letter = text.strip(string.punctuation + " ")
    if letter == "a" or (text and not letter):
        return [letter or text]
    return []


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
