"""What is reached on a class of questions without a model: what an assistant must beat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from math import sqrt

from raymill.data.demo.stdlib_conversations import ConversationEntry
from raymill.demo.asked import question_of, reference_of
from raymill.evaluate.answers import exact_match

_TOKEN = re.compile(r"[\w-]+(?:\.\w+)*")
MOST_PLACES = 40  # from either end of a question


def class_baselines(
    training: Sequence[ConversationEntry], held_out: Sequence[ConversationEntry]
) -> dict[str, float]:
    """Shares of the held-out questions that three rules get right, each fitted on the training side: the
    most frequent answer, the token of the question at the best place, the nearest question's answer."""
    return {
        "majority": _share([_majority(training)] * len(held_out), held_out),
        "copy": _share(_copied(training, held_out), held_out),
        "nearest": _share(_nearest(training, held_out), held_out),
    }


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927)."""
    if not count:
        return 0.0, 1.0
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return middle - half, middle + half


def paired_interval(differences: Sequence[float], z: float = 1.96) -> tuple[float, float, float]:
    """(mean, low, high) of paired differences, by their normal approximation."""
    count = len(differences)
    mean = sum(differences) / count
    variance = sum((value - mean) ** 2 for value in differences) / max(count - 1, 1)
    half = z * sqrt(variance / count)
    return mean, mean - half, mean + half


def _share(texts: Sequence[str], held_out: Sequence[ConversationEntry]) -> float:
    right = [exact_match(t, reference_of(e)) for t, e in zip(texts, held_out, strict=True)]
    return sum(right) / max(len(right), 1)


def _majority(training: Sequence[ConversationEntry]) -> str:
    return Counter(reference_of(entry) for entry in training).most_common(1)[0][0]


def _copied(
    training: Sequence[ConversationEntry], held_out: Sequence[ConversationEntry]
) -> list[str]:
    places = [*range(MOST_PLACES), *range(-MOST_PLACES, 0)]
    best = max(
        places, key=lambda p: _share([_token(question_of(e), p) for e in training], training)
    )
    return [_token(question_of(entry), best) for entry in held_out]


def _token(question: str, place: int) -> str:
    tokens = _TOKEN.findall(question)
    return tokens[place] if -len(tokens) <= place < len(tokens) else ""


def _nearest(
    training: Sequence[ConversationEntry], held_out: Sequence[ConversationEntry]
) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\w+")
    known = vectorizer.fit_transform([question_of(entry) for entry in training])
    asked = vectorizer.transform([question_of(entry) for entry in held_out])
    nearest = (asked @ known.T).toarray().argmax(axis=1)
    return [reference_of(training[place]) for place in nearest.tolist()]
