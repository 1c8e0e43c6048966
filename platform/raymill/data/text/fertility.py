"""Fertility: the bytes and words of text that a token stands for, by source and language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from raymill.durable import JsonObject

# Bytes that separate words: ASCII's spaces. Scripts without spaces have long "words".
_IS_SPACE = np.isin(np.arange(256), np.frombuffer(b" \t\n\r\v\f", dtype=np.uint8))
# Groups that the summary names; the manifest has all.
LISTED = 4


def words(content: bytes) -> int:
    """Count the words of a text in UTF-8: stretches between spaces."""
    if not content:
        return 0
    space = _IS_SPACE[np.frombuffer(content, dtype=np.uint8)]
    return int(np.count_nonzero(space[:-1] & ~space[1:])) + (not space[0])


@dataclass
class Fertility:
    """Sums of documents by (source, language); `language` is "" where it is unknown."""

    counts: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def add(self, source: str, language: str, text: str, tokens: int) -> None:
        """Count a document."""
        content = text.encode("utf-8")
        self._add((source, language), [1, len(content), words(content), tokens])

    def add_columns(self, notes: Iterable[tuple[str, str, list[int]]]) -> None:
        """Count documents by (source, language, counts)."""
        for source, language, values in notes:
            self._add((source, language), values)

    def to_json(self) -> JsonObject:
        """Return source → language → counts by name."""
        tree: JsonObject = {}
        for (source, language), values in sorted(self.counts.items()):
            tree.setdefault(source, {})[language] = dict(zip(_COUNTS, values, strict=True))
        return tree

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, Mapping[str, Mapping[str, int]]]]) -> Fertility:
        """Sum up what several units have returned by `to_json`."""
        total = cls()
        for part in parts:
            for source, languages in part.items():
                for language, values in languages.items():
                    total._add((source, language), [values[name] for name in _COUNTS])
        return total

    def _add(self, group: tuple[str, str], values: list[int]) -> None:
        kept = self.counts.setdefault(group, [0] * len(_COUNTS))
        for index, value in enumerate(values):
            kept[index] += value


_COUNTS = ("documents", "bytes", "words", "tokens")


def fertility_text(tree: JsonObject) -> str:
    """Describe the largest groups: `web de 3.91 bytes and 0.62 words per token, …`."""
    groups = [
        (counts["tokens"], f"{source} {language}".strip(), counts)
        for source, languages in tree.items()
        for language, counts in languages.items()
        if counts["tokens"]
    ]
    groups.sort(key=lambda group: (-group[0], group[1]))
    texts = [
        f"{name or 'all'} {counts['bytes'] / tokens:.2f} bytes and {counts['words'] / tokens:.2f} words"
        for tokens, name, counts in groups[:LISTED]
    ]
    more = f", and {len(groups) - LISTED} more" if len(groups) > LISTED else ""
    return f"{', '.join(texts)} per token{more}" if texts else "no tokens"
