"""The library's names, and names that don't exist: what the assistant is asked about, and an index.

Every name that is held out stands in the index that pretraining reads: what is held out is what they do, and
every question about them. Made-up names are made as `stdlib_unknown` does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from raymill.data.chat import stdlib_phrases as phrases
from raymill.data.chat.stdlib import split
from raymill.data.chat.stdlib_facts import Fact
from raymill.data.chat.stdlib_phrases import Chooser
from raymill.data.chat.stdlib_unknown import made_up_names
from raymill.data.split import is_held_out

MADE_UP = 0.36  # made-up names per real name that are asked about
HELD_OUT = (
    0.35  # of the short names that the embedded conversations train on, held out here as well
)
LONGEST = 20  # characters of a name
LONGEST_DRILLED = 16
LONGEST_LISTED = 11
MOST_WORDS = 10  # of an answer that is trained on: what a small model can't know takes no room


@dataclass(frozen=True)
class NameQuestion:
    """`kind`: "library", or "unknown" where the name is made up."""

    kind: str
    name: str
    held_out: bool
    question: str
    answer: str


@lru_cache(maxsize=2)
def name_questions(fraction: float, seed: int) -> tuple[NameQuestion, ...]:
    """One question about each name."""
    found: list[NameQuestion] = []
    for side, held, made_up in _sides(fraction, seed):
        for fact in side:
            answer = phrases.what(fact)
            found.append(NameQuestion("library", fact.name, held, asked(fact.name, seed), answer))
        for name in made_up:
            refusal = phrases.refusal(name)
            found.append(NameQuestion("unknown", name, held, asked(name, seed), refusal))
    return tuple(found)


@lru_cache(maxsize=2)
def index(fraction: float, seed: int) -> tuple[str, ...]:
    """Every short function's name, held out or not."""
    sides = _sides(fraction, seed)
    return tuple(sorted(fact.name for facts, _, _ in sides for fact in facts if _is_listed(fact)))


def drill(number: int, fraction: float, seed: int) -> str:
    """A question about a name, and the name again: nothing is said of whether it exists."""
    name = combined(number, fraction, seed)
    return f"{asked(name, seed)}\n`{name}`."


def combined(number: int, fraction: float, seed: int) -> str:
    """A name of two parts that names have, which is asked about nowhere."""
    taken, owners, leaves = _parts(fraction, seed)
    choose = random.Random(f"combined {seed} {number}")
    while True:
        name = f"{choose.choice(owners)}.{choose.choice(leaves)}"
        if name not in taken:
            return name


def asked(name: str, seed: int) -> str:
    """A question about a name, which stands in code's marks: a small model then copies it better."""
    return Chooser(name, seed).one("asked", phrases.WHAT).format(f"`{name}`")


@lru_cache(maxsize=2)
def _parts(fraction: float, seed: int) -> tuple[frozenset[str], tuple[str, ...], tuple[str, ...]]:
    """Names that are asked about; owners and last parts of training's names."""
    taken = frozenset(one.name for one in name_questions(fraction, seed))
    _, (training, _, _) = _sides(fraction, seed)
    short = [fact for fact in training if len(fact.name) <= LONGEST_DRILLED]
    owners, leaves = {fact.owner for fact in short}, {fact.leaf for fact in short}
    return taken, tuple(sorted(owners)), tuple(sorted(leaves))


Side = tuple[list[Fact], bool, list[str]]


@lru_cache(maxsize=2)
def _sides(fraction: float, seed: int) -> tuple[Side, Side]:
    """(real names, whether held out, made-up names) of the held-out side, and of training's."""
    untrained, trained = split(fraction, seed)
    held_out = [fact for fact in untrained if _is_listed(fact)]
    held_out += [
        fact
        for fact in trained
        if _is_listed(fact) and is_held_out(f"name {fact.name}", HELD_OUT, seed)
    ]
    taken = {fact.name for fact in held_out}
    training = [fact for fact in trained if _is_short(fact) and fact.name not in taken]
    unknown = [one.name for one in made_up_names(held_out, MADE_UP, seed)]
    also = [one.name for one in made_up_names(training, MADE_UP, seed, unknown)]
    return (held_out, True, unknown), (training, False, also)


def _is_listed(fact: Fact) -> bool:
    return (
        fact.kind == "function" and fact.name.count(".") == 1 and len(fact.name) <= LONGEST_LISTED
    )


def _is_short(fact: Fact) -> bool:
    return (
        fact.kind in ("function", "class")
        and fact.name.count(".") == 1
        and len(fact.name) <= LONGEST
        and len(phrases.what(fact).split()) <= MOST_WORDS
    )
