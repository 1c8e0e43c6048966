"""Repetition filter of Gopher: documents that say the same again and again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from raymill.data.corpus.cleaning.rules import RuleStep, Signal, at_most, duplicates, share
from raymill.data.corpus.cleaning.step import register
from raymill.data.corpus.draft import Draft
from raymill.data.corpus.ngrams import repeated_ngrams

_BETWEEN_PARAGRAPHS = re.compile(r"\n{2,}")
_BETWEEN_LINES = re.compile(r"\n+")


@register
@dataclass(frozen=True)
class GopherRepetition(RuleStep):
    """Rules of Rae et al. 2021 (arXiv 2112.11446), table A1, as datatrove's GopherRepetitionFilter reads them.

    Shares of lines and paragraphs are of their number, all others of the text's characters. None switches a
    rule off.
    """

    name: ClassVar[str] = "gopher_repetition"
    follows: ClassVar[str] = "Rae et al. 2021, table A1; datatrove's GopherRepetitionFilter"

    max_duplicate_paragraphs: float | None
    max_duplicate_paragraph_characters: float | None
    max_duplicate_lines: float | None
    max_duplicate_line_characters: float | None
    max_top_2gram: float | None
    max_top_3gram: float | None
    max_top_4gram: float | None
    max_duplicate_5grams: float | None
    max_duplicate_6grams: float | None
    max_duplicate_7grams: float | None
    max_duplicate_8grams: float | None
    max_duplicate_9grams: float | None
    max_duplicate_10grams: float | None

    def signals(self, draft: Draft) -> Iterator[Signal]:
        text = draft.text
        if not text:
            yield Signal("duplicate_paragraphs", 0.0, "empty")
            return
        parts = (
            ("paragraph", _BETWEEN_PARAGRAPHS.split(text.strip()),
             self.max_duplicate_paragraphs, self.max_duplicate_paragraph_characters),
            ("line", _BETWEEN_LINES.split(text),
             self.max_duplicate_lines, self.max_duplicate_line_characters),
        )  # fmt: skip
        for unit, items, max_items, max_characters in parts:
            count, characters = duplicates(items)
            name = f"duplicate_{unit}s"
            yield at_most(name, share(count, len(items)), max_items, name)
            name = f"duplicate_{unit}_characters"
            yield at_most(name, share(characters, len(text)), max_characters, name)
        yield from self._ngrams(draft)

    def _ngrams(self, draft: Draft) -> Iterator[Signal]:
        longest = max((n for n, limit in self._limits.items() if limit is not None), default=0)
        if not longest:
            return
        words, length = draft.counted, len(draft.text)
        for repeated in repeated_ngrams(words, longest):
            n = repeated.n
            if n <= 4:
                name, characters = f"top_{n}gram", repeated.top_characters(words)
            else:
                name, characters = f"duplicate_{n}grams", repeated.duplicate_characters(words)
            yield at_most(name, characters / length, self._limits[n], name)

    @cached_property
    def _limits(self) -> dict[int, float | None]:
        return {
            2: self.max_top_2gram, 3: self.max_top_3gram, 4: self.max_top_4gram,
            5: self.max_duplicate_5grams, 6: self.max_duplicate_6grams, 7: self.max_duplicate_7grams,
            8: self.max_duplicate_8grams, 9: self.max_duplicate_9grams, 10: self.max_duplicate_10grams,
        }  # fmt: skip
