"""The library's names, and names that don't exist: what the assistant is asked about, and an index.

Every real name that a question is about stands in the index that pretraining reads, held-out ones too: what is
held out is what they do, and every question about them. Made-up names are made as `stdlib_unknown` does.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

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
LONGEST_HELD_OUT = 11
MOST_WORDS = 10  # of an answer that is trained on: what a small model can't know takes no room
LISTED = 10  # names a line of the index


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
    """Every real name that is asked about, by owner: lines of "`os`: `chdir`, `fsync`."."""
    facts = sorted(
        (fact for side, _, _ in _sides(fraction, seed) for fact in side), key=lambda f: f.name
    )
    lines = []
    for owner, found in groupby(facts, key=lambda fact: fact.owner):
        leaves = [f"`{fact.leaf}`" for fact in found]
        for first in range(0, len(leaves), LISTED):
            lines.append(f"`{owner}`: {', '.join(leaves[first : first + LISTED])}.")
    return tuple(lines)


def drill(number: int, fraction: float, seed: int) -> str:
    """A question about a name that is asked about nowhere else, and the name again: nothing is said of
    whether it exists."""
    taken, owners, leaves = _parts(fraction, seed)
    choose = random.Random(f"drill {seed} {number}")
    while True:
        name = f"{choose.choice(owners)}.{choose.choice(leaves)}"
        if name not in taken:
            return f"{asked(name, seed)}\n`{name}`."


def asked(name: str, seed: int) -> str:
    """A question about a name, which stands in code's marks: a small model then copies it better."""
    return Chooser(name, seed).one("asked", phrases.WHAT).format(f"`{name}`")


@lru_cache(maxsize=2)
def _parts(fraction: float, seed: int) -> tuple[frozenset[str], tuple[str, ...], tuple[str, ...]]:
    """Names that are asked about; owners and last parts of training's names."""
    taken = frozenset(one.name for one in name_questions(fraction, seed))
    _, (training, _, _) = _sides(fraction, seed)
    owners, leaves = {fact.owner for fact in training}, {fact.leaf for fact in training}
    return taken, tuple(sorted(owners)), tuple(sorted(leaves))


Side = tuple[list[Fact], bool, list[str]]


@lru_cache(maxsize=2)
def _sides(fraction: float, seed: int) -> tuple[Side, Side]:
    """(real names, whether held out, made-up names) of the held-out side, and of training's."""
    untrained, trained = split(fraction, seed)
    held_out = [fact for fact in untrained if _may_be_held_out(fact)]
    held_out += [
        fact
        for fact in trained
        if _may_be_held_out(fact) and is_held_out(f"name {fact.name}", HELD_OUT, seed)
    ]
    taken = {fact.name for fact in held_out}
    training = [fact for fact in trained if _is_short(fact) and fact.name not in taken]
    unknown = [one.name for one in made_up_names(held_out, MADE_UP, seed)]
    also = [one.name for one in made_up_names(training, MADE_UP, seed, unknown)]
    return (held_out, True, unknown), (training, False, also)


def _may_be_held_out(fact: Fact) -> bool:
    return (
        fact.kind == "function" and fact.name.count(".") == 1 and len(fact.name) <= LONGEST_HELD_OUT
    )


def _is_short(fact: Fact) -> bool:
    return (
        fact.kind in ("function", "class")
        and fact.name.count(".") == 1
        and len(fact.name) <= LONGEST
        and len(phrases.what(fact).split()) <= MOST_WORDS
    )
