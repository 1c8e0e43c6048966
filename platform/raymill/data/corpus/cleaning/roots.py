"""Rules of ROOTS: repeated characters and words, special characters, and too few stop words."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import count
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from raymill.data.corpus.cleaning.rules import RuleStep, Signal, at_least, at_most, share
from raymill.data.corpus.cleaning.step import register
from raymill.data.corpus.draft import Draft
from raymill.data.corpus.ngrams import hashed_windows, occurring_again

# A piece of text between its first letter and its last; combining marks belong to the letters before.
_WORD = re.compile(r"[^\W\d_](?:\S*[^\W\d_])?[\u0300-\u036f\u0900-\u0dff\u0e00-\u0eff]*")
# Lists of jusText by language code.
_STOP_LISTS = {
    "af": "Afrikaans", "an": "Aragonese", "ar": "Arabic", "az": "Azerbaijani", "be": "Belarusian",
    "bg": "Bulgarian", "bn": "Bengali", "br": "Breton", "bs": "Bosnian", "ca": "Catalan", "cs": "Czech",
    "cy": "Welsh", "da": "Danish", "de": "German", "el": "Greek", "en": "English", "eo": "Esperanto",
    "es": "Spanish", "et": "Estonian", "eu": "Basque", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "ga": "Irish", "gl": "Galician", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian",
    "ht": "Haitian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian", "is": "Icelandic",
    "it": "Italian", "jv": "Javanese", "ka": "Georgian", "kk": "Kazakh", "kn": "Kannada", "ko": "Korean",
    "ku": "Kurdish", "ky": "Kyrgyz", "la": "Latin", "lb": "Luxembourgish", "lt": "Lithuanian",
    "lv": "Latvian", "mk": "Macedonian", "ml": "Malayalam", "mr": "Marathi", "ms": "Malay",
    "mt": "Maltese", "nb": "Norwegian_Bokmal", "ne": "Nepali", "nl": "Dutch", "nn": "Norwegian_Nynorsk",
    "no": "Norwegian_Bokmal", "oc": "Occitan", "pl": "Polish", "pt": "Portuguese", "qu": "Quechua",
    "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian",
    "sr": "Serbian", "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "tl": "Tagalog",
    "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "vo": "Volapuk", "wa": "Walloon",
}  # fmt: skip


@register
@dataclass(frozen=True)
class Roots(RuleStep):
    """Rules of Laurençon et al. 2022 (arXiv 2303.03915), as the program that cleaned OSCAR
    for ROOTS has them (`preprocessing/training/01b_oscar_cleaning_and_filtering`).

    Words are in small letters, without special characters around them. Special characters are all but letters
    and combining marks (the program lists them, and emoji). `max_repeated_characters` bounds the share of the
    most frequent n-grams of characters, √distinct of them at most; `max_repeated_words` that of word n-grams
    that occur more than once. Stop words are jusText's; a language without a list has no such bound. None
    switches a rule off. Language and perplexity have steps of their own.
    """

    name: ClassVar[str] = "roots"
    follows: ClassVar[str] = "Laurençon et al. 2022; BigScience's OSCAR filters"

    min_words: int | None
    max_words: int | None
    character_ngram: int
    max_repeated_characters: float | None
    word_ngram: int
    max_repeated_words: float | None
    max_special_characters: float | None
    min_stop_words: float | None

    def signals(self, draft: Draft) -> Iterator[Signal]:
        words = _WORD.findall(draft.text.lower())
        yield at_least("words", len(words), self.min_words, "too_few_words")
        yield at_most("words", len(words), self.max_words, "too_many_words")
        characters = _code_points(draft.text)
        yield at_most(
            "repeated_characters", repeated_characters(characters, self.character_ngram),
            self.max_repeated_characters, "repeated_characters",
        )  # fmt: skip
        numbers: defaultdict[str, int] = defaultdict(count(1).__next__)
        numbered = np.fromiter(map(numbers.__getitem__, words), np.uint64, len(words))
        windows = hashed_windows(numbered, self.word_ngram)
        repeated = share(int(np.count_nonzero(occurring_again(windows) >= 0)), len(windows))
        yield at_most("repeated_words", repeated, self.max_repeated_words, "repeated_words")
        special = share(int(np.count_nonzero(_special_table()[characters])), len(characters))
        yield at_most(
            "special_characters", special, self.max_special_characters, "special_characters"
        )
        stop_words = _stop_words(draft.language)
        if stop_words:
            counts = Counter(words)
            found = share(sum(counts[word] for word in counts.keys() & stop_words), len(words))
            yield at_least("stop_words", found, self.min_stop_words, "too_few_stop_words")


def repeated_characters(characters: NDArray[np.uint32], n: int) -> float:
    """Return the share that the most frequent n-grams have of all: the √distinct most frequent ones, of those
    that occur more than once."""
    windows = hashed_windows(characters.astype(np.uint64), n)
    if not len(windows):
        return 0.0
    counts = np.sort(np.unique(windows, return_counts=True)[1])[::-1]
    most = min(int(np.sqrt(len(counts))), int(np.count_nonzero(counts > 1)))
    return float(counts[:most].sum()) / len(windows)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@cache
def _special_table() -> NDArray[np.bool_]:
    """Return for each code point whether it is special."""
    letters = [unicodedata.category(chr(point))[0] in "LM" for point in range(sys.maxunicode + 1)]
    return ~np.array(letters)


@cache
def _stop_words(language: str) -> frozenset[str]:
    if language not in _STOP_LISTS:
        return frozenset()
    path = resources.files("justext") / "stoplists" / f"{_STOP_LISTS[language]}.txt"
    return frozenset(path.read_text(encoding="utf-8").split())
