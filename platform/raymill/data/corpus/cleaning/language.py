"""Identification of languages by py3langid, and the languages to keep."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, ClassVar

from raymill.data.corpus.cleaning.step import CleaningStep, register
from raymill.data.corpus.draft import Draft
from raymill.errors import DataError

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Language of documents for which no language is likely enough; the code of ISO 639-2 for that.
UNKNOWN = "und"


@register
@dataclass(frozen=True)
class Language(CleaningStep):
    """Identifies the language of documents, and drops those in other languages than `keep` lists.

    Languages are codes of ISO 639-1 (en, de); an empty `keep` keeps all. A document without a language of
    probability `min_probability` has the language "und", which `keep` may list, too. `declared` (source →
    code) is believed without looking. `characters` are looked at, a third each from the beginning, the
    middle and the end.
    """

    name: ClassVar[str] = "language"
    follows: ClassVar[str] = "CCNet (Wenzek et al. 2020), with py3langid for fastText"

    keep: tuple[str, ...]
    min_probability: float
    declared: dict[str, str]
    characters: int

    def apply(self, draft: Draft) -> str | None:
        declared = self.declared.get(draft.source)
        if declared is not None:
            draft.language = declared
        else:
            language, probability = identify(_sample(draft.text, self.characters))
            draft.signals["language.probability"] = probability
            draft.language = language if probability >= self.min_probability else UNKNOWN
        if not self._kept or draft.language in self._kept:
            return None
        return "unknown" if draft.language == UNKNOWN else "other"

    @cached_property
    def _kept(self) -> frozenset[str]:
        """Languages to keep.

        Raises:
            DataError: a code is none of the identifier's, so that nothing would be kept of that language.
        """
        known = {*_identifier().labels, *self.declared.values(), UNKNOWN}
        for code in self.keep:
            if code not in known:
                raise DataError(
                    f"data.cleaning: the step language can't keep {code!r}, which is never identified; "
                    f"languages are {', '.join(sorted(known))}."
                )
        return frozenset(self.keep)


def identify(text: str) -> tuple[str, float]:
    """Return the likeliest language of a text, and its probability."""
    language, probability = _identifier().classify(text)
    return str(language), float(probability)


@lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    # The model takes a second to load.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _sample(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    third = characters // 3
    middle = (len(text) - third) // 2
    return "\n".join((text[:third], text[middle : middle + third], text[-third:]))
