"""Baseline for refusals: a classifier that sees only the spelling of a question.

A model that refuses no better than a classifier of character n-grams has learned how made-up names look,
not which names exist.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_WORD = re.compile(r"\w[\w.]*")
# C of scikit-learn's LogisticRegression.
REGULARIZATION = 1.0
FOLDS = 3


def spelling_refusal_f1(
    train: Sequence[tuple[str, bool]], held_out: Sequence[tuple[str, bool]]
) -> float | None:
    """Return the held-out F1 of a logistic regression on character n-grams of the question.

    Each item is a question with its label, True if it should be refused. The regression is fitted on
    `train`. Its threshold is the one with the best F1 in 3-fold cross-validation within `train`: with few
    refusals the best threshold is below 0.5, and one chosen on `held_out` would be too favorable. Questions
    about one name share a fold, as they share a split; otherwise the classifier would see the name in
    training. Deterministic. None if either part lacks a class, or `train` has too few questions of a class
    for the folds.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

    questions = [question for question, _ in train]
    refused = np.array([label for _, label in train], dtype=bool)
    expected = np.array([label for _, label in held_out], dtype=bool)
    distinct = [
        len({q for q, r in zip(questions, refused, strict=True) if r == label}) for label in (0, 1)
    ]
    if min(min(distinct) // FOLDS, expected.sum(), (~expected).sum()) < 1:
        return None
    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(1, 5), min_df=2, sublinear_tf=True
    )
    # Fitted once for all folds, because it doesn't see the labels.
    features = vectorizer.fit_transform(questions)
    classifier = LogisticRegression(max_iter=1000, C=REGULARIZATION)
    folds = StratifiedGroupKFold(FOLDS)
    groups = np.unique(rarest_words(questions), return_inverse=True)[1]
    probability = cross_val_predict(
        classifier, features, refused, groups=groups, cv=folds, method="predict_proba"
    )
    threshold = best_threshold(probability[:, 1], refused)
    classifier.fit(features, refused)
    held_out_features = vectorizer.transform([question for question, _ in held_out])
    return f1(classifier.predict_proba(held_out_features)[:, 1] >= threshold, expected)


def best_threshold(probability: NDArray[np.float64], refused: NDArray[np.bool_]) -> float:
    """Return the refusal threshold with the best F1; among equals, the lowest."""
    order = np.argsort(-probability, kind="stable")
    ranked = probability[order]
    right = np.cumsum(refused[order])
    scores = 2 * right / (np.arange(1, len(order) + 1) + refused.sum())
    last_of_equals = np.append(ranked[1:] != ranked[:-1], True)
    scores = np.where(last_of_equals, scores, -1.0)
    return float(ranked[len(scores) - 1 - np.argmax(scores[::-1])])


def f1(predicted: NDArray[np.bool_], expected: NDArray[np.bool_]) -> float:
    """Return the harmonic mean of precision and recall; 0.0 if no prediction is right."""
    return float(2 * (predicted & expected).sum() / max(predicted.sum() + expected.sum(), 1))


def rarest_words(questions: Sequence[str]) -> list[str]:
    """Return each question's rarest word, dots included: most likely the name that it is about.

    Among equally rare words, the longest.
    """
    words = [sorted({word.strip(".") for word in _WORD.findall(q.lower())}) for q in questions]
    counts = Counter(word for distinct in words for word in distinct)
    return [min(distinct, key=lambda w: (counts[w], -len(w), w), default="") for distinct in words]
