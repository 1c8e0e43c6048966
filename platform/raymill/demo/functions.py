"""Functions that a base model writes: whether Python reads them, and how much of them it copied."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raymill.demo.asked import Speaker

COUNT = 100
NEW_TOKENS = 96
TEMPERATURE = 0.7
NAMES = ("read", "write", "parse", "get", "set", "load", "close", "find", "add", "run")
WINDOW = 24  # characters: shorter copies aren't looked for


@dataclass(frozen=True)
class Sampled:
    """`parsed`: share of the functions that `ast.parse` accepts; `copied`: the longest run of characters
    that also stands in training text."""

    functions: tuple[str, ...]
    parsed: float
    copied: str


def sample_functions(speaker: Speaker, seed: int) -> tuple[str, ...]:
    """Functions that begin with one of ten names, drawn at a temperature."""
    starts = [f"def {NAMES[number % len(NAMES)]}(" for number in range(COUNT)]
    written = speaker.complete(
        [speaker.text_prompt(start) for start in starts],
        new_tokens=NEW_TOKENS,
        temperature=TEMPERATURE,
        seed=seed,
    )
    return tuple(first_function(a + b) for a, b in zip(starts, written, strict=True))


def first_function(text: str) -> str:
    """The text up to where the first function ends: the next line that isn't indented. The last line, which
    the limit of tokens may have cut, is left off where the function goes on to the end."""
    lines = text.split("\n")
    for number, line in enumerate(lines[1:], 1):
        if line and not line[0].isspace() and not line.startswith((")", "]", "}")):
            return "\n".join(lines[:number]).rstrip() + "\n"
    return "\n".join(lines[:-1] if len(lines) > 2 else lines).rstrip() + "\n"


def parses(function: str) -> bool:
    """Whether Python reads it."""
    try:
        ast.parse(function)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def longest_copy(written: Sequence[str], training: Iterable[str]) -> str:
    """The longest run of characters that stands both in something written and in a training document."""
    places: dict[str, list[tuple[int, int]]] = {}
    for which, text in enumerate(written):
        for start in range(len(text) - WINDOW + 1):
            places.setdefault(text[start : start + WINDOW], []).append((which, start))
    best = ""
    for document in training:
        for start in range(len(document) - WINDOW + 1):
            for which, place in places.get(document[start : start + WINDOW], ()):
                text, length = written[which], WINDOW
                # A run is extended from its beginning only.
                if start and place and document[start - 1] == text[place - 1]:
                    continue
                while (
                    document[start + length : start + length + 1]
                    == text[place + length : place + length + 1]
                    != ""
                ):
                    length += 1
                if length > len(best):
                    best = text[place : place + length]
    return best
