"""Text of the demonstration for pretraining: notes and an index of names, besides the library's own
text.

The name of a part carries everything that it is generated from, so that any process can regenerate
it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from raymill.data.demo import stdlib_corpus
from raymill.data.demo.exercises import (
    argument_names,
    copy_note,
    exercises,
    function_names,
    words,
)
from raymill.data.demo.names import drill, index, indexed
from raymill.data.store.split import hash_fraction

FOLDER = "notes"
LIBRARY = "library"
# Characters of the excerpt of a library document.
EXCERPT = 850
# Notes of each kind; those of positions state everything about a signature.
NOTES = {"position": 900, "backwards": 2400, "larger": 2500}
# Questions of each kind with their answers, as plain text: fine-tuning then only teaches their form.
ASKED = {
    "position": 2200,
    "count": 800,
    "default": 1200,
    "backwards": 1300,
    "larger": 2500,
    "sum": 500,
}
COPIES = 8000
# Questions about names, answered with the name alone.
DRILLS = 3000
# Number of times that the index lists every real name.
PASSES = 20
# Lines of a document.
LINES = 12


@lru_cache(maxsize=1)
def excerpts(fraction: float, seed: int) -> tuple[str, ...]:
    """Return an excerpt of each training document of the library, cut at lines.

    A run of minutes learns more from a little of everything than from all of a few documents.
    """
    corpus = stdlib_corpus.entries()
    held_out = stdlib_corpus.held_out_families(corpus, fraction, seed)
    texts = []
    for entry in corpus:
        if entry.family not in held_out:
            text = stdlib_corpus.read(entry.name)
            last_start = max(len(text) - EXCERPT, 0)
            start = (
                text.rfind(
                    "\n", 0, int(hash_fraction(f"excerpt {entry.name}", seed) * last_start) + 1
                )
                + 1
            )
            stop = text.find("\n", start + EXCERPT) + 1
            texts.append(text[start : stop or len(text)])
    return tuple(texts)


def parts(fraction: float, seed: int) -> list[str]:
    """Return the names of all parts, as inputs of a preparation."""
    names = [f"index-{number}" for number in range(PASSES)] + [LIBRARY, "copies", "drills"]
    names += [*NOTES, *(f"asked-{kind}" for kind in ASKED)]
    return [f"{FOLDER}/{fraction:g}/{seed}/{name}.txt" for name in names]


def documents(part: str) -> tuple[str, ...]:
    """Return the documents of a part, from its name alone."""
    _, fraction, seed, name = part.removesuffix(".txt").split("/")
    if name == LIBRARY:
        return excerpts(float(fraction), int(seed))
    return tuple(_together(_lines(name, float(fraction), int(seed))))


def _together(lines: list[str]) -> Iterator[str]:
    for first in range(0, len(lines), LINES):
        yield "\n".join(lines[first : first + LINES]) + "\n"


@lru_cache(maxsize=1)
def _lines(name: str, fraction: float, seed: int) -> list[str]:
    if name == "copies":
        real, made_up = index(fraction, seed)
        pool = (*argument_names(), *function_names(), *words(), *real, *made_up)
        return [copy_note(random.Random(f"copy {seed} {n}"), pool) for n in range(COPIES)]
    if name == "drills":
        return [drill(number, fraction, seed) for number in range(DRILLS)]
    if name.startswith("asked-"):
        kind = name.removeprefix("asked-")
        return [
            exercise.asked
            for exercise in islice(exercises(kind, False, seed, "asked"), ASKED[kind])
        ]
    if name in NOTES:
        return [
            exercise.note for exercise in islice(exercises(name, False, seed, "note"), NOTES[name])
        ]
    number = int(name.removeprefix("index-"))
    real, made_up = index(fraction, seed)
    # Each pass lists all real names, but its own part of the made-up ones.
    share = len(made_up) // PASSES
    others = made_up[number * share : (number + 1) * share]
    lines = [indexed(listed, True) for listed in real]
    lines += [indexed(listed, False) for listed in others]
    random.Random(f"index {seed} {number}").shuffle(lines)
    return lines
