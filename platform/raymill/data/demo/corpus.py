"""The demonstration's text for pretraining: notes and an index of names, beside the library's own text.

A part is named by everything that it is made from, so that any process can make it again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from math import sqrt

from raymill.data import stdlib_corpus
from raymill.data.demo.exercises import (
    argument_names,
    copy_note,
    exercises,
    function_names,
    words,
)
from raymill.data.demo.names import drill, index, indexed, practiced, sides
from raymill.data.split import unit_hash

FOLDER = "notes"
LIBRARY = "library"
EXCERPT = 850  # characters of a piece of the library
EXCERPTS = 1000  # pieces
# Notes of each kind; those of positions say all there is to say about a signature.
NOTES = {"position": 900, "backwards": 1500, "larger": 3000}
# Questions of each kind with their answers, as plain text: fine-tuning then has their form to teach only.
ASKED = {
    "position": 2200,
    "count": 800,
    "default": 1200,
    "backwards": 1300,
    "larger": 3500,
    "sum": 300,
}
NAMES = "asked-names"
ASKED_NAMES = 1000
DRILLS = 4000  # questions about names, answered with the name alone
COPIES = 8000
INDEX = "index"
PASSES = 25  # times that the index says where every name is
LINES = 12  # of a document


@lru_cache(maxsize=1)
def excerpts(fraction: float, seed: int) -> tuple[str, ...]:
    """Pieces of the training modules' source, cut at lines: a run of minutes learns more from a little of
    everything than from all of a little. A package or module of four times the size has twice as many."""
    sizes: dict[str, list[stdlib_corpus.Entry]] = {}
    corpus = stdlib_corpus.entries()
    held_out = stdlib_corpus.held_out_families(corpus, fraction, seed)
    for entry in corpus:
        if entry.kind == "source" and entry.family not in held_out:
            top = entry.name.split("/")[1].removesuffix(".py")
            sizes.setdefault(top, []).append(entry)
    weights = {top: sqrt(sum(one.size for one in found)) for top, found in sizes.items()}
    share = EXCERPTS / sum(weights.values())
    found = []
    for top, entries in sizes.items():
        text = "".join(stdlib_corpus.read(one.name) for one in entries)
        count = int(weights[top] * share + unit_hash(f"excerpts {top}", seed))
        for number in range(count):
            place = (number + unit_hash(f"excerpt {top} {number}", seed)) / count
            found.append(_piece(text, place))
    return tuple(found)


def _piece(text: str, place: float) -> str:
    """Whole lines from about there, a share of the text."""
    start = text.rfind("\n", 0, int(place * max(len(text) - EXCERPT, 0)) + 1) + 1
    stop = text.find("\n", start + EXCERPT) + 1
    return text[start : stop or len(text)]


def parts(fraction: float, seed: int) -> list[str]:
    """The names of all parts, as inputs of a preparation."""
    names = [INDEX, LIBRARY, "copies", "drills", NAMES]
    names += [*NOTES, *(f"asked-{kind}" for kind in ASKED)]
    return [f"{FOLDER}/{fraction:g}/{seed}/{name}.txt" for name in names]


def documents(part: str) -> tuple[str, ...]:
    """The documents of a part, from its name alone."""
    _, fraction, seed, name = part.removesuffix(".txt").split("/")
    if name == LIBRARY:
        return excerpts(float(fraction), int(seed))
    return tuple(_together(_lines(name, float(fraction), int(seed))))


def _together(lines: list[str]) -> Iterator[str]:
    for first in range(0, len(lines), LINES):
        yield "\n".join(lines[first : first + LINES]) + "\n"


@lru_cache(maxsize=1)
def _lines(name: str, fraction: float, seed: int) -> list[str]:
    if name == INDEX:
        return [line for number in range(PASSES) for line in _listed(number, fraction, seed)]
    if name == "copies":
        real = [fact.name for side in sides(fraction, seed) for fact in side.real]
        pool = (*argument_names(), *function_names(), *words(), *real)
        return [copy_note(random.Random(f"copy {seed} {n}"), pool) for n in range(COPIES)]
    if name == "drills":
        return [drill(number, fraction, seed) for number in range(DRILLS)]
    if name == NAMES:
        return [practiced(number, fraction, seed) for number in range(ASKED_NAMES)]
    if name in NOTES:
        return [one.note for one in islice(exercises(name, False, seed, "note"), NOTES[name])]
    kind = name.removeprefix("asked-")
    return [one.asked for one in islice(exercises(kind, False, seed, "asked"), ASKED[kind])]


def _listed(number: int, fraction: float, seed: int) -> list[str]:
    """The index in an order of its own."""
    lines = [f"{indexed(leaf, owners)}." for leaf, owners in index(fraction, seed).items()]
    random.Random(f"index {seed} {number}").shuffle(lines)
    return lines
