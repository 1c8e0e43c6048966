"""Document while it is cleaned: its text changes, and signals are noted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

_WORD = re.compile(r"\w+(?:['’]\w+)*")


@dataclass
class Draft:
    """Document that steps of cleaning read and change.

    `source` is the name of the declared source; `url` and `language` are "" while unknown; `signals` are
    named measurements of the steps, kept with the document. Views of the text are computed once, and again
    when a step has replaced the text with `replace_text`.
    """

    text: str
    source: str
    url: str = ""
    language: str = ""
    signals: dict[str, float] = field(default_factory=dict)

    @cached_property
    def words(self) -> list[str]:
        """Words by Unicode's letters and digits, without punctuation."""
        return _WORD.findall(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Lines as `str.split("\\n")` gives them."""
        return self.text.split("\n")

    def replace_text(self, text: str) -> None:
        """Set another text; views of the old one are forgotten."""
        self.text = text
        for view in VIEWS & self.__dict__.keys():
            del self.__dict__[view]


VIEWS = {name for name, member in vars(Draft).items() if isinstance(member, cached_property)}
