"""Filter of quality by a classifier that the user trained with `jobs/prepare.py kind=quality`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from raymill.data.corpus.cleaning.block_lists import fingerprint
from raymill.data.corpus.cleaning.step import CleaningStep, register
from raymill.data.corpus.draft import Draft
from raymill.data.corpus.quality_model import load

Part = Literal["head", "middle", "tail"]


@register
@dataclass(frozen=True)
class Quality(CleaningStep):
    """Sorts documents into head, middle and tail by their scores, and drops those whose part isn't in `keep`.

    The head is the best share `head` of the raw text that the model was tested on, the tail the worst share
    `tail` of it: so thresholds mean the same for every model.
    """

    name: ClassVar[str] = "quality"
    follows: ClassVar[str] = (
        "DCLM (Li et al. 2024) for the classifier, CCNet (Wenzek et al. 2020) for the parts"
    )

    model: str
    head: float
    tail: float
    keep: tuple[Part, ...]

    def fingerprint(self) -> str:
        """Return the digest of the model."""
        return fingerprint((self.model,))

    def apply(self, draft: Draft) -> str | None:
        model = load(self.model)
        score = float(model.classifier.scores([draft.text])[0])
        quantile = model.quantile(score)
        draft.signals.update({"quality.score": score, "quality.quantile": quantile})
        part = self._part(quantile)
        return None if part in self.keep else part

    def _part(self, quantile: float) -> Part:
        if quantile >= 1 - self.head:
            return "head"
        return "tail" if quantile < self.tail else "middle"
