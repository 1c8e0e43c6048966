"""Line rules of RefinedWeb: menus, counters and buttons go, and documents that had too many of them."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from raymill.data.corpus.cleaning.rules import share
from raymill.data.corpus.cleaning.step import CleaningStep, register
from raymill.data.corpus.draft import Draft

_UPPER = string.ascii_uppercase.encode()
_DIGITS = string.digits.encode()
_NEWLINES = re.compile(r"\n{3,}")


@register
@dataclass(frozen=True)
class RefinedWebLines(CleaningStep):
    """Rules of Penedo et al. 2023 (arXiv 2306.01116), appendix G.2, as in DCLM's `dclm_baseline_refinedweb`.

    Lines go that have more upper-case letters or digits than these shares of their characters, that are counts
    (a number and one of `counted`), or that have fewer than `min_line_words` words. In lines of at most
    `phrase_line_words` words, the phrases are removed. A document goes that loses more than `max_removed_words`
    of its words. Empty lines stay, two at most.
    """

    name: ClassVar[str] = "refinedweb_lines"
    follows: ClassVar[str] = (
        "Penedo et al. 2023, appendix G.2; DCLM's dclm_baseline_refinedweb.yaml"
    )

    max_upper_case: float
    max_digits: float
    min_line_words: int
    counted: tuple[str, ...]
    phrases: tuple[str, ...]
    phrases_at_start: tuple[str, ...]
    phrases_at_end: tuple[str, ...]
    phrase_line_words: int
    max_removed_words: float

    def apply(self, draft: Draft) -> str | None:
        lines = [cleaned for line in draft.lines if (cleaned := self._cleaned(line)) is not None]
        text = _NEWLINES.sub("\n\n", "\n".join(lines)).strip()
        before = len(draft.pieces)
        removed = share(before - len(text.split()), before)
        draft.signals["refinedweb_lines.removed_words"] = removed
        if not text:
            return "empty"
        if removed > self.max_removed_words:
            return "too_many_words_removed"
        draft.replace_text(text)
        return None

    def _cleaned(self, line: str) -> str | None:
        """Return the line without phrases, or None for one that goes."""
        if not line:
            return line
        if (
            _upper_case(line) > self.max_upper_case * len(line)
            or _digits(line) > self.max_digits * len(line)
            or self._counter.search(line)
        ):
            return None
        words = len(line.split())
        if words < self.min_line_words:
            return None
        if words <= self.phrase_line_words:
            for phrase in self._patterns:
                cut = phrase.sub("", line)
                if not cut or cut.isspace():
                    return None
                line = cut
        return line

    @cached_property
    def _counter(self) -> re.Pattern[str]:
        things = "|".join(map(re.escape, self.counted))
        return re.compile(rf"^\W*\d[\d,.]*[kmb]?\s+(?:{things})\W*$", re.IGNORECASE)

    @cached_property
    def _patterns(self) -> tuple[re.Pattern[str], ...]:
        forms = (
            (self.phrases, r"\s?(?:{})"),
            (self.phrases_at_end, r"\s?(?:{})$"),
            (self.phrases_at_start, r"^(?:{})\s?"),
        )
        return tuple(
            re.compile(form.format("|".join(map(re.escape, phrases))), re.IGNORECASE)
            for phrases, form in forms
            if phrases
        )


def _upper_case(line: str) -> int:
    if line.isascii():
        encoded = line.encode()
        return len(encoded) - len(encoded.translate(None, _UPPER))
    return sum(map(str.isupper, line))


def _digits(line: str) -> int:
    if line.isascii():
        encoded = line.encode()
        return len(encoded) - len(encoded.translate(None, _DIGITS))
    return sum(map(str.isdigit, line))
