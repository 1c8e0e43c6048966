"""Classifier of quality: logistic regression over hashed n-grams of words, kept in one file without code.

The file is in the format of safetensors: weights, bias, and percentiles of the scores of text as it comes. Its
metadata tell what it was trained on, and how well it does on held-out documents.

There is no filter by perplexity: DCLM (Li et al. 2024, section 4.4) selected better text by a classifier of
this kind than by perplexity, and KenLM, on which CCNet's filter rests, has no wheels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raymill.durable import atomic_replacement, canonical_json
from raymill.errors import DataError
from raymill.reading import MISSING, read_bytes, status

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import HashingVectorizer

FORMAT = "quality 1"
_KEY = "raymill"


@dataclass(frozen=True)
class Features:
    """Properties of a text that a model weighs: n-grams of 1 to `ngram` words, hashed into `buckets`.

    Only the first `characters` of a text count.
    """

    ngram: int
    buckets: int
    characters: int

    def of(self, texts: Sequence[str]) -> csr_matrix:
        """Return a row of `buckets` counts for each text, of length 1."""
        return self._vectorizer.transform([text[: self.characters] for text in texts])

    @cached_property
    def _vectorizer(self) -> HashingVectorizer:
        # The import takes a second, and most preparations don't need it.
        from sklearn.feature_extraction.text import HashingVectorizer

        return HashingVectorizer(
            token_pattern=r"\w+",
            ngram_range=(1, self.ngram),
            n_features=self.buckets,
            alternate_sign=False,
            dtype=np.float32,
        )


@dataclass(frozen=True)
class Training:
    """Documents that a model was trained and tested on, and how well it does on the latter.

    `good` and `raw` count documents; `auc` is the probability that a good document has a higher score than
    one of the raw text.
    """

    good: int
    raw: int
    held_out_good: int
    held_out_raw: int
    accuracy: float
    auc: float


@dataclass(frozen=True)
class Classifier:
    """Logistic regression: a weight for each bucket of the features."""

    features: Features
    weights: NDArray[np.float32]
    bias: float

    def scores(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the probability of each text that it is one of the good documents."""
        logits = self.features.of(texts) @ self.weights + self.bias
        # The logistic function, without overflow.
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), dtype=np.float32)


@dataclass(frozen=True)
class QualityModel:
    """Classifier with the scores of held-out raw text at its percentiles: 101 of them, ascending."""

    classifier: Classifier
    percentiles: NDArray[np.float32]
    training: Training

    def quantile(self, score: float) -> float:
        """Return the share of raw text with a lower score, from 0 to 1."""
        return float(np.interp(score, self.percentiles, np.linspace(0, 1, len(self.percentiles))))

    def save(self, path: Path) -> None:
        """Write the file."""
        from safetensors.numpy import save

        tensors = {
            "weights": self.classifier.weights,
            "bias": np.array([self.classifier.bias], dtype=np.float64),
            "percentiles": self.percentiles,
        }
        facts = {
            "format": FORMAT,
            "features": asdict(self.classifier.features),
            "training": asdict(self.training),
        }
        # Of several keys, safetensors would write the order as it comes.
        content = save(tensors, {_KEY: canonical_json(facts)})
        with atomic_replacement(path) as temporary:
            temporary.write_bytes(content)


def load(path: str) -> QualityModel:
    """Read a model, once in a process while the file stays the same.

    Raises:
        DataError: the file is missing, or isn't such a model.
    """
    found = status(Path(path))
    if found is None:
        raise DataError(
            f"{path}: there is no such model; train one by jobs/prepare.py kind=quality."
        )
    return _load(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4)
def _load(path: str, size: int, modified: int) -> QualityModel:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        content = read_bytes(Path(path))
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        facts = json.loads(header["__metadata__"][_KEY])
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}, expected {FORMAT!r}")
        features = Features(**facts["features"])
        classifier = Classifier(features, tensors["weights"], float(tensors["bias"][0]))
        training = Training(**facts["training"])
    except (*MISSING, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} isn't a model of kind=quality: {error}") from error
    return QualityModel(classifier, tensors["percentiles"], training)
