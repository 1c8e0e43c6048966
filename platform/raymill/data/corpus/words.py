"""Words of a text as numbers, without a loop over words: the thresholds of filters count words in this way.

datatrove's filters count the tokens of spaCy's English tokenizer, so punctuation marks are words of their own,
and `don't` is two. One expression here follows spaCy's rules (`spacy/lang/punctuation.py`, `spacy/lang/en`),
but for most of its abbreviations and for emoticons. Chinese and Japanese characters are words of their own, as
by default in Unicode's annex 29.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import filterfalse
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Sentence_Terminal of Unicode 15, and the signs of Khmer that end sections.
TERMINAL = frozenset(
    "!.?\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965"
    "\u104a\u104b\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u17d6\u17d9\u17da\u1803\u1809\u1944\u1945"
    "\u1aa8\u1aa9\u1aaa\u1aab\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1c3b\u1c3c\u1c7e\u1c7f\u203c\u203d"
    "\u2047\u2048\u2049\u2e2e\u2e3c\u2e53\u2e54\u3002\ua4ff\ua60e\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf"
    "\ua92f\ua9c8\ua9c9\uaa5d\uaa5e\uaa5f\uaaf0\uaaf1\uabeb\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61"
    "\U00010a56\U00010a57\U00010f55\U00010f56\U00010f57\U00010f58\U00010f59\U00010f86\U00010f87\U00010f88"
    "\U00010f89\U00011047\U00011048\U000110be\U000110bf\U000110c0\U000110c1\U00011141\U00011142\U00011143"
    "\U000111c5\U000111c6\U000111cd\U000111de\U000111df\U00011238\U00011239\U0001123b\U0001123c\U000112a9"
    "\U0001144b\U0001144c\U000115c2\U000115c3\U000115c9\U000115ca\U000115cb\U000115cc\U000115cd\U000115ce"
    "\U000115cf\U000115d0\U000115d1\U000115d2\U000115d3\U000115d4\U000115d5\U000115d6\U000115d7\U00011641"
    "\U00011642\U0001173c\U0001173d\U0001173e\U00011944\U00011946\U00011a42\U00011a43\U00011a9b\U00011a9c"
    "\U00011c41\U00011c42\U00011ef7\U00011ef8\U00011f43\U00011f44\U00016a6e\U00016a6f\U00016af5\U00016b37"
    "\U00016b38\U00016b44\U00016e98\U0001bc9f\U0001da88"
)
# A word of these alone is punctuation: the marks of CCNet's list, terminal ones, and control characters.
PUNCTUATION = TERMINAL.union(
    string.punctuation,
    "´«»–—’“”„…∶━►、〈〉《》「」【】％（），１：；～\r",
    map(chr, [*range(9), 11, 12, *range(14, 32), *range(127, 160)]),
)

_MARKS = r"…,:;!?¿؟¡()\[\]{}<>_#*&。？！，、；：～·।۔؛٪"
_QUOTES = "'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉"
_ICONS = (
    "¦©®°\u2195-\u2199\u219c-\u21f3\u2300-\u2307\u230c-\u2426\u249c-\u24e9\u2500-\u25f7"
    "\u2600-\u27bf\u2800-\u28ff\u2b00-\u2bff\ufffd\U0001f000-\U0001faff"
)
# Chinese and Japanese characters.
_SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LOWER, _UPPER, _LETTER = "a-zß-öø-ÿа-яё", "A-ZÀ-ÖØ-ÞА-ЯЁ", r"[^\W\d_]"
_UNITS = (
    "(?:[kcdmµn]?m[²³]?|ha|yd|in|ft|[kmµ]?g|t|lb|oz|m/s|k?m/h|kmh|mph|[ap]m|[hkM]?Pa|mbar"
    "|[kKmMgGtT][bB]|[TGMK])"
)
_ALNUM = rf"[^\W_{_SPACELESS}]"
# What closes a piece; the bound keeps the search linear.
_END = rf"(?=[{_MARKS}{_QUOTES}{_ICONS}—–.]{{0,16}}(?:\s|\Z))"
_ABBREVIATIONS = r"""
[a-z] e\.g i\.e a\.m p\.m Ph\.D Mr Mrs Ms Dr Prof St Jr Sr Gen Rev vs Inc Ltd Co Corp Bros Mt
Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec
"""
_ABBREVIATED = "".join(rf"(?<!\b{word})" for word in _ABBREVIATIONS.split())
# A full stop that is a word of its own.
_STOP = rf"(?:(?<=[\d{_LOWER}%²\-+{_MARKS}{_QUOTES}]){_ABBREVIATED}|(?<=[{_UPPER}][{_UPPER}]))\."
_HYPHEN = "(?:---?|——|[-–—~])"
# Where a word ends although no space follows.
_CUT = (
    rf"[{_ICONS}…]|\.\.|{_STOP}{_END}|(?:[{_MARKS}{_QUOTES}—–]|(?<=\d)[+$£€¥%]){_END}"
    rf"|['’](?:[sStTmMdD]|ll|ve|re){_END}|(?<=[^\W_])(?:{_HYPHEN}|[:<>=/])(?={_LETTER})"
    rf"|(?<=\d)[+\-*^](?=[\d-])|(?<=[{_LOWER}{_QUOTES}])\.(?=[{_UPPER}{_QUOTES}])"
    rf"|(?<={_LETTER}),(?={_LETTER})"
)
_ADDRESS = (
    r"(?=[\w+-]{0,64}+[.:@])(?:[a-z]{2,6}://)?(?:[\w.+-]{1,64}+@)?(?:[^\W_][\w-]{0,62}+\.){1,20}[a-z]{2,63}"
    rf"(?::\d{{2,5}})?(?:[/?#](?:\S{{0,999}}[^\s{_MARKS}{_QUOTES}.])?)?{_END}"
)
_PLAIN = rf"[^\W\d_{_SPACELESS}]++"
_WORD = re.compile(
    # Most words are letters alone, and the first alternative saves them from the others.
    rf"{_PLAIN}(?=\s|,\s)|(?<=\w)['’](?:[sStTmMdD]|ll|ve|re)\b|{_ADDRESS}|\d[\d.,]*(?={_UNITS}{_END})"
    rf"|\.\.+|\+(?!\d)|[{_MARKS}{_QUOTES}{_ICONS}§%=—–$£€¥₹₽]"
    rf"|(?:{_ALNUM}++|(?!{_CUT})[^\s{_SPACELESS}])+|{_HYPHEN}|\S"
)


class Marks(NamedTuple):
    """Words of a text that are punctuation alone, their characters, and the words without a letter."""

    marks: int
    mark_characters: int
    letterless: int


@dataclass(frozen=True)
class Words:
    """Words of a text in order, punctuation marks included."""

    texts: Sequence[str]

    @classmethod
    def of(cls, text: str) -> Words:
        """Cut a text, in time linear in its length."""
        return cls(_WORD.findall(text))

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def hashes(self) -> NDArray[np.uint64]:
        """Python's hashes of the words, which differ from process to process."""
        return np.fromiter(map(hash, self.texts), np.int64, len(self)).view(np.uint64)

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Characters before each word and after the last one, spaces not counted."""
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, self.texts), np.int64, len(self)), out=offsets[1:])
        return offsets

    @cached_property
    def marks(self) -> Marks:
        """Counts of the words that aren't letters alone, which are few."""
        marks = characters = letterless = 0
        for word in filterfalse(str.isalpha, self.texts):
            if word in PUNCTUATION or PUNCTUATION.issuperset(word):
                marks += 1
                characters += len(word)
            letterless += not any(map(str.isalpha, word))
        return Marks(marks, characters, letterless)

    def count(self, word: str) -> int:
        """Count the occurrences of a word."""
        return int(np.count_nonzero(self.hashes == np.uint64(hash(word) & _ALL_BITS)))


_ALL_BITS = 2**64 - 1


# A full stop that is a word of its own, or another terminal mark; then closing marks, and another word.
_SENTENCE_END = re.compile(
    rf"(?:{_STOP}|[!?])(?:[{_MARKS}{_QUOTES}.]{{0,16}}\s|(?=[{_UPPER}{_QUOTES}]))[\W_]*(?=[^\W_])"
    r"|[。！？｡।۔؟][\W_]*(?=[^\W_])"
)


def count_sentences(line: str) -> int:
    """Count the sentences of a line: one more than the terminal marks that a word follows."""
    return 1 + len(_SENTENCE_END.findall(line))
