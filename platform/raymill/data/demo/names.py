"""The library's names, and names that don't exist: what the assistant is asked about and an index of them.

Real names are short ones of functions that a module has: so many as a model of two million parameters
learns by heart in minutes. The index that pretraining reads says in which modules each last part of a
name is, held-out names' too: what is held out is every question about them. An answer says first where
the last part is, and then whether the name that was asked about exists, which follows from it.
Made-up names are made as everywhere (`stdlib_unknown`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from raymill.data.chat import stdlib_phrases as phrases
from raymill.data.chat.stdlib import split
from raymill.data.chat.stdlib_facts import Fact
from raymill.data.chat.stdlib_unknown import is_unknown, made_up_names
from raymill.data.split import is_held_out

MADE_UP = 0.36  # made-up names per real name that are asked about
MADE_UP_TRAINED = 1.0  # the same, of training's side
LONGEST = 11  # characters of a name
HELD_OUT = 0.35  # of the names that the embedded conversations train on, held out here as well
ABOUT = ("What is {}?", "Where is {}?", "Is there {}?", "Do you know {}?", "Tell me of {}.")


@dataclass(frozen=True)
class NameQuestion:
    """`kind`: "library", or "unknown" where the name is made up."""

    kind: str
    name: str
    held_out: bool
    question: str
    answer: str


@dataclass(frozen=True)
class Side:
    """Names of one side of the held-out split."""

    held_out: bool
    real: tuple[Fact, ...]
    made_up: tuple[str, ...]


@lru_cache(maxsize=2)
def name_questions(fraction: float, seed: int) -> tuple[NameQuestion, ...]:
    """One question about each name."""
    owners = index(fraction, seed)
    found: list[NameQuestion] = []
    for side in sides(fraction, seed):
        names = [("library", fact.name) for fact in side.real]
        names += [("unknown", name) for name in side.made_up]
        for kind, name in names:
            question = _question(name, random.Random(f"name {seed} {name}"))
            found.append(NameQuestion(kind, name, side.held_out, question, _answer(name, owners)))
    return tuple(found)


@lru_cache(maxsize=2)
def index(fraction: float, seed: int) -> dict[str, tuple[str, ...]]:
    """The modules that have a function of a name, by that name, of all real names that are asked about."""
    found: dict[str, set[str]] = {}
    for side in sides(fraction, seed):
        for fact in side.real:
            found.setdefault(fact.leaf, set()).add(fact.owner)
    return {leaf: tuple(sorted(found[leaf])) for leaf in sorted(found)}


def indexed(leaf: str, owners: Sequence[str]) -> str:
    """Where it is, as the index says it and as every answer begins."""
    return f"`{leaf}` is in {', '.join(f'`{owner}`' for owner in owners)}"


def practiced(number: int, fraction: float, seed: int) -> str:
    """A question about a name of training's parts with its answer, as plain text: every other made up."""
    choose = random.Random(f"practice {seed} {number}")
    name = _made_of_parts(choose, fraction, seed)
    if number % 2:
        name = choose.choice(sides(fraction, seed)[1].real).name
    return f"{_question(name, choose)}\n{_answer(name, index(fraction, seed))}"


def drill(number: int, fraction: float, seed: int) -> str:
    """A question of another kind about a made-up name, and the name again: practice in repeating it."""
    choose = random.Random(f"drill {seed} {number}")
    name = _made_of_parts(choose, fraction, seed)
    return f"{choose.choice(phrases.WHAT).format(f'`{name}`')}\n`{name}`."


def _made_of_parts(choose: random.Random, fraction: float, seed: int) -> str:
    """A name that doesn't exist, of parts that training's names have; none that is asked about held out."""
    held_out, training = sides(fraction, seed)
    while True:
        owner, leaf = choose.choice(training.real), choose.choice(training.real)
        name = f"{owner.owner}.{leaf.leaf}"
        if name not in held_out.made_up and is_unknown(owner, leaf.leaf):
            return name


@lru_cache(maxsize=2)
def sides(fraction: float, seed: int) -> tuple[Side, Side]:
    """The held-out names, and training's."""
    held_out, training = (
        [fact for fact in side if fact.kind == "function" and _is_short(fact.name)]
        for side in split(fraction, seed)
    )
    held_out += [fact for fact in training if is_held_out(f"name {fact.name}", HELD_OUT, seed)]
    training = [fact for fact in training if not is_held_out(f"name {fact.name}", HELD_OUT, seed)]
    unknown = [one.name for one in made_up_names(held_out, MADE_UP, seed)]
    also = [one.name for one in made_up_names(training, MADE_UP_TRAINED, seed, unknown)]
    return (
        Side(True, tuple(held_out), tuple(unknown)),
        Side(False, tuple(training), tuple(also)),
    )


def _is_short(name: str) -> bool:
    return name.count(".") == 1 and len(name) <= LONGEST


def _question(name: str, choose: random.Random) -> str:
    """A question about a name that stands in code's marks, which tell where it begins and ends."""
    return choose.choice(ABOUT).format(f"`{name}`")


def _answer(name: str, owners: dict[str, tuple[str, ...]]) -> str:
    owner, _, leaf = name.partition(".")
    exists = owner in owners[leaf]
    said = f"`{name}` is a function." if exists else phrases.refusal(name)
    return f"{indexed(leaf, owners[leaf])}: {said}"
