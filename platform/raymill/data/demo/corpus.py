"""The demonstration's text for pretraining: notes and an index of names, beside the library's own text.

A part is named by everything that it is made from, so that any process can make it again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from raymill.data.demo.exercises import (
    argument_names,
    copy_note,
    exercises,
    function_names,
    words,
)
from raymill.data.demo.names import index, indexed
from raymill.data.split import unit_hash

FOLDER = "notes"
LIBRARY_BYTES = 1_000_000
LONGEST_DOCUMENT = 40_000  # bytes: many documents rather than a few large ones
# Notes of each kind; those of positions say all there is to say about a signature.
NOTES = {"position": 2500, "backwards": 3500, "sum": 500, "larger": 2500}
COPIES = 3000
PASSES = 14  # times that the index lists every real name
LINES = 12  # of a document


def library_share(sizes: dict[str, int], seed: int) -> frozenset[str]:
    """The training documents of the library that are read: shorter ones in the order of a seeded hash,
    until there are as many bytes as a run of minutes gets through once."""
    chosen: set[str] = set()
    held = 0
    for name in sorted(sizes, key=lambda one: unit_hash(f"demo {one}", seed)):
        if held >= LIBRARY_BYTES:
            break
        if sizes[name] <= LONGEST_DOCUMENT:
            chosen.add(name)
            held += sizes[name]
    return frozenset(chosen)


def parts(fraction: float, seed: int) -> list[str]:
    """The names of all parts, as inputs of a preparation."""
    names = [f"index-{number}" for number in range(PASSES)] + ["copies", *NOTES]
    return [f"{FOLDER}/{fraction:g}/{seed}/{name}.txt" for name in names]


def documents(part: str) -> tuple[str, ...]:
    """The documents of a part, from its name alone."""
    _, fraction, seed, name = part.removesuffix(".txt").split("/")
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
    if name in NOTES:
        return [one.note for one in islice(exercises(name, False, seed, "note"), NOTES[name])]
    number = int(name.removeprefix("index-"))
    real, made_up = index(fraction, seed)
    share = len(made_up) // PASSES
    others = made_up[number * share : (number + 1) * share]
    lines = [indexed(one, True) for one in real] + [indexed(one, False) for one in others]
    random.Random(f"index {seed} {number}").shuffle(lines)
    return lines
