"""Rules that FineWeb adds to those of Gopher and C4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from raymill.data.corpus.cleaning.rules import (
    RuleStep,
    Signal,
    at_least,
    at_most,
    duplicates,
    share,
)
from raymill.data.corpus.cleaning.step import register
from raymill.data.corpus.draft import Draft
from raymill.data.corpus.words import TERMINAL


@register
@dataclass(frozen=True)
class FineWeb(RuleStep):
    """Rules of Penedo et al. 2024 (arXiv 2406.17557), section 3.6, as in datatrove's FineWebQualityFilter.

    Lines of white space don't count. `max_duplicate_characters` is a share of the characters without line
    breaks (0.1 in the paper, 0.01 in the code that made FineWeb). None switches a rule off.
    """

    name: ClassVar[str] = "fineweb"
    follows: ClassVar[str] = "Penedo et al. 2024, section 3.6; datatrove's FineWebQualityFilter"

    min_punctuated_lines: float | None
    max_short_lines: float | None
    short_line_characters: int
    max_duplicate_characters: float | None
    max_newlines_per_word: float | None

    def signals(self, draft: Draft) -> Iterator[Signal]:
        lines = draft.filled_lines
        if not lines:
            yield Signal("punctuated_lines", 0.0, "empty")
            return
        punctuated = sum(line[-1] in TERMINAL for line in lines) / len(lines)
        yield at_least(
            "punctuated_lines", punctuated, self.min_punctuated_lines, "unpunctuated_lines"
        )
        short = sum(len(line) <= self.short_line_characters for line in lines) / len(lines)
        yield at_most("short_lines", short, self.max_short_lines, "short_lines")
        newlines = len(draft.lines) - 1
        repeated = duplicates(lines)[1] / (len(draft.text) - newlines)
        name = "duplicate_characters"
        yield at_most(name, repeated, self.max_duplicate_characters, name)
        per_word = share(newlines, len(draft.counted))
        yield at_most("newlines_per_word", per_word, self.max_newlines_per_word, "list")
