"""Quality filter of Gopher: documents that aren't prose, by counts of words, symbols and lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from raymill.data.corpus.cleaning.rules import RuleStep, Signal, at_least, at_most, share
from raymill.data.corpus.cleaning.step import register
from raymill.data.corpus.draft import Draft

_BULLETS = ("•", "-")
_ELLIPSES = ("...", "…")


@register
@dataclass(frozen=True)
class GopherQuality(RuleStep):
    """Rules of Rae et al. 2021 (arXiv 2112.11446), section A.1.1, read as by datatrove's GopherQualityFilter.

    Punctuation marks are words in ratios, but count neither for `min_words` and `max_words` nor for the mean
    length (Dolma takes the median). Stop words are counted as they are written, each once (`distinct`); DCLM
    counts all occurrences (`all`). None switches a rule off.
    """

    name: ClassVar[str] = "gopher_quality"
    follows: ClassVar[str] = "Rae et al. 2021, section A.1.1; datatrove's GopherQualityFilter"

    min_words: int | None
    max_words: int | None
    min_word_length: float | None
    max_word_length: float | None
    max_symbols_per_word: float | None
    max_bullet_lines: float | None
    max_ellipsis_lines: float | None
    min_words_with_letter: float | None
    min_stop_words: int | None
    stop_words: tuple[str, ...]
    stop_words_counted: Literal["distinct", "all"]

    def signals(self, draft: Draft) -> Iterator[Signal]:
        words = draft.counted
        marks = words.marks
        count = len(words) - marks.marks
        yield at_least("words", count, self.min_words, "too_few_words")
        yield at_most("words", count, self.max_words, "too_many_words")
        length = share(float(words.offsets[-1]) - marks.mark_characters, count)
        yield at_least("word_length", length, self.min_word_length, "short_words")
        yield at_most("word_length", length, self.max_word_length, "long_words")
        text, limit = draft.text, self.max_symbols_per_word
        hashes = share(text.count("#"), len(words))
        yield at_most("hashes_per_word", hashes, limit, "too_many_hashes")
        ellipses = share(sum(map(text.count, _ELLIPSES)), len(words))
        yield at_most("ellipses_per_word", ellipses, limit, "too_many_ellipses")
        lines = text.splitlines()
        bullets = share(sum(line.lstrip().startswith(_BULLETS) for line in lines), len(lines))
        yield at_most("bullet_lines", bullets, self.max_bullet_lines, "too_many_bullets")
        cut_off = share(sum(line.rstrip().endswith(_ELLIPSES) for line in lines), len(lines))
        yield at_most("ellipsis_lines", cut_off, self.max_ellipsis_lines, "lines_cut_off")
        letters = share(len(words) - marks.letterless, len(words))
        yield at_least(
            "words_with_letter", letters, self.min_words_with_letter, "words_without_letters"
        )
        counts = [words.count(word) for word in set(self.stop_words)]
        stops = sum(counts) if self.stop_words_counted == "all" else sum(map(bool, counts))
        yield at_least("stop_words", stops, self.min_stop_words, "too_few_stop_words")
