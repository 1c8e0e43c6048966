"""Functions written by a base model: the share that is valid Python, and the longest copy of training text."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from raymill.demo.stage_model import StageModel

COUNT = 100
NEW_TOKENS = 96
TEMPERATURE = 0.7
NAMES = ("read", "write", "parse", "get", "set", "load", "close", "find", "add", "run")
# Characters of the shortest copy that is searched for.
WINDOW = 24


@dataclass(frozen=True)
class SampledFunctions:
    """`parsed`: share of the functions that `ast.parse` accepts; `copied`: the longest run of characters
    that also occurs in training text."""

    functions: tuple[str, ...]
    parsed: float
    copied: str


def sample_functions(model: StageModel, seed: int) -> tuple[str, ...]:
    """Sample functions that begin with one of ten names."""
    starts = [f"def {NAMES[number % len(NAMES)]}(" for number in range(COUNT)]
    continuations = model.complete(
        [model.text_prompt(start) for start in starts],
        new_tokens=NEW_TOKENS,
        temperature=TEMPERATURE,
        seed=seed,
    )
    return tuple(first_function(a + b) for a, b in zip(starts, continuations, strict=True))


def first_function(text: str) -> str:
    """Return the text up to the next line that isn't indented, which is the end of the first function.

    If the function reaches the end of the text, its last line is dropped: the token limit may have cut it.
    """
    lines = text.split("\n")
    for number, line in enumerate(lines[1:], 1):
        if line and not line[0].isspace() and not line.startswith((")", "]", "}")):
            return "\n".join(lines[:number]).rstrip() + "\n"
    return "\n".join(lines[:-1] if len(lines) > 2 else lines).rstrip() + "\n"


def parses(function: str) -> bool:
    """Tell whether a function is valid Python."""
    try:
        # Python warns about doubtful literals, on the terminal.
        with warnings.catch_warnings(action="ignore"):
            ast.parse(function)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def longest_copy(written: Sequence[str], training: Iterable[str]) -> str:
    """Return the longest run of characters that occurs in a written text and in a training document."""
    # Windows of the written texts are indexed, because the training text is too large to index.
    windows: dict[str, list[tuple[int, int]]] = {}
    for index, text in enumerate(written):
        for offset in range(len(text) - WINDOW + 1):
            windows.setdefault(text[offset : offset + WINDOW], []).append((index, offset))
    best = ""
    for document in training:
        for start in range(len(document) - WINDOW + 1):
            for index, offset in windows.get(document[start : start + WINDOW], ()):
                text, length = written[index], WINDOW
                # A run is extended only from its first window, so that each run is measured once.
                if start and offset and document[start - 1] == text[offset - 1]:
                    continue
                while (
                    document[start + length : start + length + 1]
                    == text[offset + length : offset + length + 1]
                    != ""
                ):
                    length += 1
                if length > len(best):
                    best = text[offset : offset + length]
    return best
