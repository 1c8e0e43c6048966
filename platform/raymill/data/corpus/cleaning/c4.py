"""Rules of C4: lines that aren't sentences go, and documents with signs of code or too few sentences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from raymill.data.corpus.cleaning.rules import RuleStep, Signal, at_least
from raymill.data.corpus.cleaning.step import CleaningStep, register
from raymill.data.corpus.draft import Draft
from raymill.data.corpus.words import count_sentences

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_SENTENCE_ENDS = (".", "?", "!", '"', "'")
_CUT_OFF = "..."


@register
@dataclass(frozen=True)
class C4(CleaningStep):
    """Rules of Raffel et al. 2020 (JMLR 21), section 2.2, as datatrove's C4QualityFilter reads them.

    Lines go that have a word longer than `max_word_length`, fewer than `min_line_words` words, "javascript",
    one of `policy_phrases` or, with `terminal_punctuation`, no terminal punctuation mark. Documents go that
    have "lorem ipsum" or a curly bracket in another line, or fewer than `min_sentences` sentences left. Marks
    of citations are removed. None switches a rule off. There is no list of bad words.
    """

    name: ClassVar[str] = "c4"
    follows: ClassVar[str] = "Raffel et al. 2020, section 2.2; datatrove's C4QualityFilter"

    terminal_punctuation: bool
    min_line_words: int | None
    max_word_length: int | None
    min_sentences: int | None
    javascript: bool
    policy_phrases: tuple[str, ...]
    lorem_ipsum: bool
    curly_bracket: bool
    citations: bool

    def apply(self, draft: Draft) -> str | None:
        dropped: Counter[str] = Counter()
        kept: list[str] = []
        lines = draft.text.splitlines()
        reason = None
        for line in map(str.strip, lines):
            if self.citations and "[" in line:
                line, uncut = _CITATION.sub("", line), line
            else:
                uncut = line
            fault = self._line_fault(uncut, line)
            if fault in ("lorem_ipsum", "curly_bracket"):
                reason = fault
                break
            if fault is not None:
                dropped[fault] += 1
            else:
                kept.append(line)
        sentences = sum(map(count_sentences, kept))
        if reason is None and self.min_sentences is not None and sentences < self.min_sentences:
            reason = "too_few_sentences"
        draft.signals.update((f"c4.{fault}_lines", count) for fault, count in dropped.items())
        draft.signals["c4.kept_lines"] = len(kept) / len(lines) if lines else 0.0
        draft.signals["c4.sentences"] = sentences
        if reason is None:
            draft.replace_text("\n".join(kept).strip())
        return reason

    def _line_fault(self, uncut: str, line: str) -> str | None:
        """Name what is wrong with a line, whose form without citations is `line`."""
        longest, words = self.max_word_length, uncut.split()
        if longest is not None and len(uncut) > longest and max(map(len, words)) > longest:
            return "long_word"
        if self.terminal_punctuation and (
            not line.endswith(_SENTENCE_ENDS) or line.endswith(_CUT_OFF)
        ):
            return "unpunctuated"
        if self.min_line_words is not None and len(words) < self.min_line_words:
            return "short"
        lowered = line.lower()
        if self.lorem_ipsum and "lorem ipsum" in lowered:
            return "lorem_ipsum"
        if self.javascript and "javascript" in lowered:
            return "javascript"
        if self.curly_bracket and "{" in line:
            return "curly_bracket"
        if any(phrase in lowered for phrase in self.policy_phrases):
            return "policy"
        return None


@register
@dataclass(frozen=True)
class C4Paragraphs(RuleStep):
    """Rule of mC4 (Xue et al. 2021, arXiv 2010.11934, section 3.1): so many lines of so many characters."""

    name: ClassVar[str] = "c4_paragraphs"
    follows: ClassVar[str] = "Xue et al. 2021, section 3.1; datatrove's C4ParagraphFilter"

    min_long_lines: int
    long_line_characters: int

    def signals(self, draft: Draft) -> Iterator[Signal]:
        long = sum(len(line) >= self.long_line_characters for line in draft.lines)
        yield at_least("long_lines", long, self.min_long_lines, "too_few_long_lines")
