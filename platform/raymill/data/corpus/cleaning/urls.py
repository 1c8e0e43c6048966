"""Filter of web addresses by lists of the user's (see `block_lists`): domains, URLs, and words in URLs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar
from urllib.parse import urlsplit

import ahocorasick

from raymill.data.corpus.cleaning.block_lists import HashedEntries, fingerprint, loaded
from raymill.data.corpus.cleaning.step import CleaningStep, register
from raymill.data.corpus.draft import Draft

_PUNCTUATION = re.compile("[^a-zA-Z0-9]+")


@register
@dataclass(frozen=True)
class Urls(CleaningStep):
    """Drops documents by their URLs; those without one are kept.

    `domains`, `urls`, `words`, `soft_words` and `subwords` are paths of lists. A domain blocks all that is
    below it, too. A word is a stretch of letters and digits in the URL: one of `words` drops the document, and
    so do `min_soft_words` of `soft_words`. A subword drops it wherever it stands in the URL without its
    punctuation.
    """

    name: ClassVar[str] = "urls"
    follows: ClassVar[str] = (
        "RefinedWeb (Penedo et al. 2023, appendix G.1), as datatrove's URLFilter"
    )

    domains: tuple[str, ...]
    urls: tuple[str, ...]
    words: tuple[str, ...]
    soft_words: tuple[str, ...]
    subwords: tuple[str, ...]
    min_soft_words: int

    def fingerprint(self) -> str:
        """Return the digest of all lists."""
        return fingerprint(self.domains + self.urls + self.words + self.soft_words + self.subwords)

    def apply(self, draft: Draft) -> str | None:
        if not draft.url:
            return None
        lists = self._lists
        if self.domains and any(domain in lists.domains for domain in _domains(draft.url)):
            return "domain"
        if self.urls and draft.url in lists.urls:
            return "url"
        words = set(_PUNCTUATION.split(draft.url))
        soft = len(words & lists.soft_words)
        draft.signals["urls.soft_words"] = soft
        if words & lists.words:
            return "word"
        if soft >= self.min_soft_words:
            return "soft_words"
        return "subword" if lists.has_subword(_normalized(draft.url)) else None

    @cached_property
    def _lists(self) -> _Lists:
        return _Lists(
            domains=loaded(HashedEntries, self.domains),
            urls=loaded(HashedEntries, self.urls),
            words=loaded(_normalized_words, self.words),
            soft_words=loaded(_normalized_words, self.soft_words),
            subwords=loaded(_automaton, self.subwords),
        )


@dataclass(frozen=True)
class _Lists:
    domains: HashedEntries
    urls: HashedEntries
    words: frozenset[str]
    soft_words: frozenset[str]
    subwords: ahocorasick.Automaton | None

    def has_subword(self, text: str) -> bool:
        return self.subwords is not None and next(self.subwords.iter(text), None) is not None


def _domains(url: str) -> Iterator[str]:
    """Yield the host of a URL and all domains that it belongs to: a.b.c, b.c, c."""
    try:
        host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
    # Brackets that hold no IPv6 address.
    except ValueError:
        return
    host = host.rstrip(".")
    while host:
        yield host
        host = host.partition(".")[2]


def _normalized(text: str) -> str:
    return _PUNCTUATION.sub("", text).lower()


def _normalized_words(entries: Iterable[str]) -> frozenset[str]:
    return frozenset(map(_normalized, entries)) - {""}


def _automaton(entries: Iterable[str]) -> ahocorasick.Automaton | None:
    words = _normalized_words(entries)
    if not words:
        return None
    automaton = ahocorasick.Automaton(ahocorasick.STORE_LENGTH)
    for word in words:
        automaton.add_word(word)
    automaton.make_automaton()
    return automaton
