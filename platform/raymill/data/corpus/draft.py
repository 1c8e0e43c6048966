"""Document while it is cleaned: its text changes, and signals are noted."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from raymill.data.corpus.words import Words


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
    def pieces(self) -> list[str]:
        """Parts of the text between spaces."""
        return self.text.split()

    @cached_property
    def counted(self) -> Words:
        """Words and punctuation marks, by which the filters count words."""
        return Words.of(self.text)

    @cached_property
    def lines(self) -> list[str]:
        """Lines as `str.split("\\n")` gives them."""
        return self.text.split("\n")

    @cached_property
    def filled_lines(self) -> list[str]:
        """Lines with more than white space."""
        return [line for line in self.lines if line and not line.isspace()]

    def replace_text(self, text: str) -> None:
        """Set another text; views of the old one are forgotten."""
        if text == self.text:
            return
        self.text = text
        for view in VIEWS & self.__dict__.keys():
            del self.__dict__[view]


VIEWS = {name for name, member in vars(Draft).items() if isinstance(member, cached_property)}
