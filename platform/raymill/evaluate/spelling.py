"""The yardstick for refusals: how well the spelling of a question alone tells that it has no answer.

A model that refuses no better than a classifier of character n-grams has learned how made-up names
look, not which names exist.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w[\w.]*")
REGULARIZATION = 1.0  # scikit-learn's C
FOLDS = 3


def spelling_refusal_f1(
    train: Sequence[tuple[str, bool]], held_out: Sequence[tuple[str, bool]]
) -> float | None:
    """F1 on the held-out questions of a logistic regression on character n-grams of the question.

    Each item is a question and whether it should be refused. The regression is fitted on `train`; a
    question is refused from a probability on that gives the best F1 in 3-fold cross-validation within
    `train`: with few refusals the best threshold is below 0.5, and one chosen on `held_out` would
    flatter. Questions about one name stand in one fold, as they stand on one side of the split;
    otherwise the classifier would look surer than it is. Deterministic. None if either part lacks a
    class, or `train` has too few questions of one for the folds.
    """
    from sklearn.feature_extraction.text import (
        TfidfVectorizer,
    )
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import (
        StratifiedGroupKFold,
        cross_val_predict,
    )

    questions = [question for question, _ in train]
    refused = np.array([label for _, label in train], dtype=bool)
    expected = np.array([label for _, label in held_out], dtype=bool)
    if min(_folds_worth(questions, refused), expected.sum(), (~expected).sum()) < 1:
        return None
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(1, 5), min_df=2, sublinear_tf=True
    )
    features = vectorizer.fit_transform(questions)  # once for all folds: it sees no labels
    classifier = LogisticRegression(max_iter=1000, C=REGULARIZATION)
    folds = StratifiedGroupKFold(FOLDS)
    groups = np.unique(rarest_words(questions), return_inverse=True)[1]
    within = cross_val_predict(
        classifier, features, refused, groups=groups, cv=folds, method="predict_proba"
    )
    threshold = best_threshold(within[:, 1], refused)
    classifier.fit(features, refused)
    asked = vectorizer.transform([question for question, _ in held_out])
    return f1(classifier.predict_proba(asked)[:, 1] >= threshold, expected)


def best_threshold(probability: NDArray[np.float64], refused: NDArray[np.bool_]) -> float:
    """The probability from which refusing gives the best F1; the lowest of equals."""
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    right = np.cumsum(refused[order])
    scores = 2 * right / (np.arange(1, len(order) + 1) + refused.sum())
    last_of_equals = np.append(ranked[1:] != ranked[:-1], True)
    scores = np.where(last_of_equals, scores, -1.0)
    return float(ranked[len(scores) - 1 - np.argmax(scores[::-1])])


def f1(given: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    """Harmonic mean of precision and recall; 0.0 if nothing is right."""
    return float(2 * (given & expected).sum() / max(given.sum() + expected.sum(), 1))


def rarest_words(questions: Sequence[str]) -> list[str]:
    """Of each question the word that the fewest questions have, dots included: the name asked about.

    Of equally rare words the longest.
    """
    words = [sorted({word.strip(".") for word in _WORD.findall(q.lower())}) for q in questions]
    counts = Counter(word for found in words for word in found)
    return [min(found, key=lambda w: (counts[w], -len(w), w), default="") for found in words]


def _folds_worth(questions: Sequence[str], refused: NDArray[np.bool_]) -> int:
    """How many folds' worth of different questions the rarer class has."""
    of_class = [len({q for q, r in zip(questions, refused, strict=True) if r == c}) for c in (0, 1)]
    return min(of_class) // FOLDS
