"""Baselines on a class of questions that need no model: the least that an assistant must beat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import sqrt

from raymill.data.demo.stdlib_conversations import ConversationEntry
from raymill.demo.stage_model import question_of, reference_of
from raymill.evaluate.answers import exact_match

_TOKEN = re.compile(r"[\w-]+(?:\.\w+)*")
# Positions that "copy" tries, counted from either end of a question.
POSITIONS = 40


def class_baselines(
    training: Sequence[ConversationEntry], held_out: Sequence[ConversationEntry]
) -> dict[str, float]:
    """Return the shares of held-out questions that three rules answer right, each fitted on `training`.

    "majority": the most frequent answer. "copy": the question's token at the position that is right most
    often. "nearest": the answer to the most similar training question.
    """
    majority = Counter(reference_of(entry) for entry in training).most_common(1)[0][0]
    return {
        "majority": _share_right([majority] * len(held_out), held_out),
        "copy": _share_right(_copy(training, held_out), held_out),
        "nearest": _share_right(_nearest(training, held_out), held_out),
    }


def paired_interval(differences: Sequence[float], z: float = 1.96) -> tuple[float, float, float]:
    """Return (mean, low, high): the 95% interval of paired differences, by the normal approximation."""
    count = len(differences)
    mean = sum(differences) / count
    variance = sum((value - mean) ** 2 for value in differences) / max(count - 1, 1)
    half = z * sqrt(variance / count)
    return mean, mean - half, mean + half


def _share_right(texts: Sequence[str], held_out: Sequence[ConversationEntry]) -> float:
    right = [exact_match(t, reference_of(e)) for t, e in zip(texts, held_out, strict=True)]
    return sum(right) / max(len(right), 1)


def _copy(
    training: Sequence[ConversationEntry], held_out: Sequence[ConversationEntry]
) -> list[str]:
    positions = [*range(POSITIONS), *range(-POSITIONS, 0)]
    best = max(
        positions,
        key=lambda p: _share_right([_token(question_of(e), p) for e in training], training),
    )
    return [_token(question_of(entry), best) for entry in held_out]


def _token(question: str, position: int) -> str:
    tokens = _TOKEN.findall(question)
    return tokens[position] if -len(tokens) <= position < len(tokens) else ""


def _nearest(
    training: Sequence[ConversationEntry], held_out: Sequence[ConversationEntry]
) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\w+")
    known = vectorizer.fit_transform([question_of(entry) for entry in training])
    unknown = vectorizer.transform([question_of(entry) for entry in held_out])
    nearest = (unknown @ known.T).toarray().argmax(axis=1)
    return [reference_of(training[index]) for index in nearest.tolist()]
