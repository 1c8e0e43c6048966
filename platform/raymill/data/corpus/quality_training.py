"""Training of the classifier of quality, from documents that are good and documents as they come."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from raymill.data.corpus.quality_model import Classifier, Features, QualityModel, Training
from raymill.errors import DataError

# Documents of a kind with which held-out figures mean something.
LEAST_DOCUMENTS = 20
# Rows of features have length 1, so that weights must be large to matter.
_INVERSE_REGULARIZATION = 10.0


def train(
    good: Iterable[str], raw: Iterable[str], features: Features, *, held_out: float, seed: int
) -> QualityModel:
    """Train a classifier that tells `good` from `raw` documents; equal input gives an equal model.

    The share `held_out` of each kind tests the model, and its raw documents give the percentiles. Equal
    documents count once, and not at all where they are of both kinds.

    Raises:
        DataError: there are too few documents.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    # Dictionaries keep the order of the documents, and so the draw.
    goods, raws = dict.fromkeys(good), dict.fromkeys(raw)
    both = goods.keys() & raws.keys()
    draw = np.random.default_rng(seed)
    good_split = _split([text for text in goods if text not in both], "good", held_out, draw)
    raw_split = _split([text for text in raws if text not in both], "raw", held_out, draw)
    regression = LogisticRegression(
        C=_INVERSE_REGULARIZATION, solver="liblinear", class_weight="balanced", random_state=seed
    )
    labels = [1] * len(good_split[0]) + [0] * len(raw_split[0])
    regression.fit(features.of([*good_split[0], *raw_split[0]]), labels)
    weights = np.asarray(regression.coef_[0], dtype=np.float32)
    classifier = Classifier(features, weights, float(regression.intercept_[0]))
    good_scores, raw_scores = classifier.scores(good_split[1]), classifier.scores(raw_split[1])
    truth = [1] * len(good_scores) + [0] * len(raw_scores)
    scores = np.concatenate([good_scores, raw_scores])
    training = Training(
        good=len(good_split[0]),
        raw=len(raw_split[0]),
        held_out_good=len(good_scores),
        held_out_raw=len(raw_scores),
        accuracy=float(np.mean((scores >= 0.5) == truth)),
        auc=float(roc_auc_score(truth, scores)),
    )
    return QualityModel(
        classifier, np.percentile(raw_scores, range(101)).astype(np.float32), training
    )


def _split(
    texts: list[str], kind: str, held_out: float, draw: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Return the texts to train on and those to test on."""
    if len(texts) < LEAST_DOCUMENTS:
        raise DataError(
            f"quality.{kind} has {len(texts)} documents that count, expected at least {LEAST_DOCUMENTS}: "
            "equal documents count once, and not at all where they are of both kinds."
        )
    order = draw.permutation(len(texts))
    count = max(1, round(held_out * len(texts)))
    return [texts[number] for number in order[count:]], [texts[number] for number in order[:count]]
