"""Repair of wrongly decoded text by ftfy, applied only to the lines that ftfy may change."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

from ftfy import TextFixerConfig, fix_text
from ftfy.badness import is_bad
from ftfy.fixes import unescape_html

from raymill.data.corpus.cleaning.step import CleaningStep, register
from raymill.data.corpus.draft import Draft

# Characters that ftfy removes or replaces, wherever they stand.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffc\ud800-\udfff]"
)
_ENTITY = re.compile("&#?[0-9A-Za-z]{1,24};")
# Levels of entities within entities. ftfy has no limit, and so takes hours for a megabyte of "&amp;amp;amp;…".
_PASSES = 8


@register
@dataclass(frozen=True)
class Repair(CleaningStep):
    """Repairs characters that were decoded wrongly, such as "Ã©" for "é"; drops nothing.

    `unescape_html` turns entities such as "&eacute;" into characters: always, never, or ("auto") in the lines
    before the first "<", since a text with tags may mean its entities. Quotes, ligatures and widths of
    characters stay as they are.
    """

    name: ClassVar[str] = "repair"
    follows: ClassVar[str] = "FineWeb-2 (Penedo et al. 2025), as datatrove's FTFYFormatter"

    unescape_html: bool | Literal["auto"]

    def apply(self, draft: Draft) -> str | None:
        repaired = 0
        if self._is_suspicious(draft.text, self.unescape_html is not False):
            lines = [f"{line}\n" for line in draft.text.split("\n")]
            # The last line has no end.
            lines[-1] = lines[-1][:-1]
            repaired = self._repair(lines)
            if repaired:
                draft.replace_text("".join(lines))
        draft.signals["repair.lines"] = repaired
        return None

    def _repair(self, lines: list[str]) -> int:
        """Repair lines in place; return the number of those that changed."""
        repaired = 0
        unescape = self.unescape_html is not False
        for number, line in enumerate(lines):
            if self.unescape_html == "auto" and "<" in line:
                unescape = False
            if self._is_suspicious(line, unescape):
                lines[number] = self._repaired(line, unescape)
                repaired += lines[number] != line
        return repaired

    def _repaired(self, line: str, unescape: bool) -> str:
        for _ in range(_PASSES):
            before = line
            line = fix_text(unescape_html(line) if unescape else line, self._config)
            if line == before:
                break
        return line

    @staticmethod
    def _is_suspicious(text: str, unescape: bool) -> bool:
        """Return whether ftfy may change a text or a line of it."""
        if _CONTROLS.search(text) or (unescape and _ENTITY.search(text)):
            return True
        # All signs of wrong decoding have a character beyond ASCII.
        return not text.isascii() and is_bad(text)

    @cached_property
    def _config(self) -> TextFixerConfig:
        return TextFixerConfig(
            unescape_html=False,
            fix_latin_ligatures=False,
            fix_character_width=False,
            uncurl_quotes=False,
            fix_line_breaks=False,
            normalization=None,
        )
