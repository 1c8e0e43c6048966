"""Normalization: one form of Unicode, line breaks and spaces, and no invisible characters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal
from unicodedata import is_normalized, normalize

from raymill.data.corpus.cleaning.step import CleaningStep, register
from raymill.data.corpus.draft import Draft

# Lines also end at \r\n, at a lone \r, and at Unicode's separators; a form feed or a vertical tab is a space.
_BREAKS = re.compile("\r\n?|[\x85\u2028\u2029]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f]")
# Soft hyphens, zero-width spaces, word joiners and byte order marks. Joiners (U+200C, U+200D) spell words of
# Persian and Indic languages and join emoji, and marks of direction order mixed text: they stay.
_INVISIBLE = re.compile("[\xad\u200b\u2060\ufeff]")
_SPACES = re.compile("[\x0b\x0c\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_SEVERAL_SPACES = re.compile("[ \t]{2,}")


@register
@dataclass(frozen=True)
class Normalize(CleaningStep):
    """Normalizes characters, and drops documents that are left without text.

    `form` is a form of Unicode. `controls` removes control characters, `invisible` invisible ones, and `spaces`
    turns all kinds of spaces into " ". `collapse_spaces` makes one of several spaces or tabs, at the beginning
    of a line, too; `max_empty_lines` limits empty lines in a row. Spaces at the ends of lines always go.
    """

    name: ClassVar[str] = "normalize"
    follows: ClassVar[str] = "Unicode Standard Annex 15; CCNet (Wenzek et al. 2020) for spaces"

    form: Literal["NFC", "NFKC", "none"]
    controls: bool
    invisible: bool
    spaces: bool
    collapse_spaces: bool
    max_empty_lines: int

    def apply(self, draft: Draft) -> str | None:
        text = _BREAKS.sub("\n", draft.text)
        if self.controls:
            text = _CONTROLS.sub("", text)
        if self.invisible:
            text = _INVISIBLE.sub("", text)
        if self.spaces:
            text = _SPACES.sub(" ", text)
        if self.form != "none" and not is_normalized(self.form, text):
            text = normalize(self.form, text)
        if self.collapse_spaces:
            text = _SEVERAL_SPACES.sub(" ", text)
        text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
        most = self.max_empty_lines + 1
        text = re.sub(f"\n{{{most + 1},}}", "\n" * most, text).strip("\n")
        if text != draft.text:
            draft.replace_text(text)
        return None if text.strip() else "empty"
