"""Scores of generated answers against reference answers. Pure: no model, no files.

Exact match and token F1 are those of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250): answers are compared
in lower case, without punctuation and articles, and without the reasoning before them. Punctuation that
belongs to a number or a name is kept: `-5`, `3.14`, `1/2`, `x+1`, `C#`. Refusals are scored as predictions
of the questions that should be refused: those whose reference refuses.
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
# Beginning of an answer that declines.
DECLINES = "I don't know"
# Rewards of the rule "right or honest": declining pays off for a model that would be right in fewer than three
# cases of ten.
POINTS: dict[Verdict, float] = {"right": 1.0, "declined": 0.3, "wrong": 0.0}

_ARTICLES = re.compile(r"(?<![\w+])(?:a|an|the)(?![\w+#])")
# Punctuation that is kept: between digits, a sign or a point before a digit, x+1 and C++, C#, x^2, x < 5.
_KEPT = (
    r"(?<=[0-9])[^\w\s](?=[0-9])|(?<![\w-])-(?=[$]?\.?[0-9])|(?<![\w.])\.(?=[0-9])"
    r"|(?<=\w)\+|\+(?![$.0-9])|(?<=[a-z])#(?!\w)|\^|[<>](?=\s?[-.0-9])"
)
_PUNCTUATION = re.compile(rf"(?P<kept>{_KEPT})|[{re.escape(string.punctuation)}]")


@dataclass(frozen=True)
class Answer:
    """Generated answer to a question.

    `text` excludes the end of turn. `ended`: the model ended its turn itself. `in_reasoning`: the prompt opened
    reasoning, in which the text begins.
    """

    question: str
    reference: str
    text: str
    ended: bool
    in_reasoning: bool = False

    @property
    def final_text(self) -> str:
        """Text after its reasoning, which is the part that is scored."""
        return after_reasoning(self.text, self.in_reasoning)

    @property
    def expected(self) -> str:
        """Reference after its reasoning."""
        return after_reasoning(self.reference)


@dataclass(frozen=True)
class AnswerScores:
    """Scores of a set of answers, all but `count` in [0, 1]; None where undefined.

    `exact`: over all answers. `f1`: over answerable questions only. `ended`: share of the non-empty answers.
    `empty`: share of answers without text. `refusal_precision` is undefined if nothing was refused,
    `refusal_recall` and `refusal_f1` if nothing should have been.
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
        """Return the defined scores under names such as `{prefix}/exact`."""
        defined = {name: value for name, value in asdict(self).items() if value is not None}
        return {f"{prefix}/{name}": float(value) for name, value in defined.items()}


def exact_match(text: str, reference: str) -> bool:
    """Tell whether both are equal after normalization."""
    return _tokens(text) == _tokens(reference)


def token_f1(text: str, reference: str) -> float:
    """Return the F1 of the two multisets of tokens; if either is empty, 1.0 if both are and else 0.0."""
    answer, expected = _tokens(text), _tokens(reference)
    if not answer or not expected:
        return float(answer == expected)
    shared = (Counter(answer) & Counter(expected)).total()
    return 2 * shared / (len(answer) + len(expected))


def refuses(text: str, phrase: str) -> bool:
    """Tell whether a text begins with the refusal phrase, ignoring case and white space.

    False for an empty phrase.
    """
    return bool(phrase.strip()) and " ".join(text.lower().split()).startswith(
        " ".join(phrase.lower().split())
    )


def score(answers: Sequence[Answer], refusal_phrase: str) -> AnswerScores:
    """Compute all scores of a set of answers."""
    should = [refuses(answer.expected, refusal_phrase) for answer in answers]
    did = [refuses(answer.final_text, refusal_phrase) for answer in answers]
    both = sum(expected and actual for expected, actual in zip(should, did, strict=True))
    written = [answer for answer in answers if answer.text.strip()]
    answerable = [answer for answer, refused in zip(answers, should, strict=True) if not refused]
    return AnswerScores(
        count=len(answers),
        exact=_mean([exact_match(answer.final_text, answer.expected) for answer in answers]),
        f1=_mean([token_f1(answer.final_text, answer.expected) for answer in answerable]),
        ended=_mean([answer.ended for answer in written]),
        empty=_mean([not answer.text.strip() for answer in answers]),
        refusal_precision=both / sum(did) if any(did) else None,
        refusal_recall=both / sum(should) if any(should) else None,
        refusal_f1=2 * both / (sum(did) + sum(should)) if any(should) else None,
    )


def verdict(text: str, reference: str, phrase: str = DECLINES) -> Verdict:
    """Return "right" for the reference, "declined" for a text that begins with `phrase`, else "wrong"."""
    if exact_match(text, reference):
        return "right"
    return "declined" if refuses(text, phrase) else "wrong"


def _tokens(text: str) -> list[str]:
    text = " ".join(text.lower().replace("−", "-").split())
    words = _PUNCTUATION.sub(lambda match: match["kept"] or "", THOUSANDS.sub("", text))
    tokens = _ARTICLES.sub(" ", words).split()
    if tokens:
        return tokens
    # A text of nothing but punctuation stands for itself, and a lone "a" is the letter of a choice.
    letter = text.strip(string.punctuation + " ")
    return [letter or text] if letter == "a" or (text and not letter) else []


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
