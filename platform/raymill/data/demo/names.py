"""The library's names, and names that don't exist: what the assistant is asked about and an index of it.

Real names are short ones of functions that a module has: so many as a model of two million parameters
learns by heart in minutes. All of them stand in the index that pretraining reads, held-out ones too:
what is held out is what they do, and every question about them.
Made-up names are made as everywhere (`stdlib_unknown`); the index has others than the questions, of
training's parts only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from raymill.data.demo import stdlib_phrases as phrases
from raymill.data.demo.stdlib_conversations import split
from raymill.data.demo.stdlib_facts import Fact
from raymill.data.demo.stdlib_phrases import Chooser
from raymill.data.demo.stdlib_unknown import made_up_names
from raymill.data.store.split import is_held_out

MADE_UP = 0.36  # made-up names per real name that are asked about
INDEXED = 7.0  # made-up names per real name that the index has
LONGEST = 11  # characters of a name
LONGEST_TRAINED = 20  # of a name that fine-tuning adds
MOST_WORDS = 10  # of an answer about such a name
HELD_OUT = 0.35  # of the names that the embedded conversations train on, held out here as well


Side = tuple[list[Fact], bool, list[str]]  # real names, whether held out, made-up names


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
    for side, held, made_up in (*_sides(fraction, seed), _longer(fraction, seed)):
        for fact in side:
            answer = phrases.what(fact)
            found.append(NameQuestion("library", fact.name, held, _marked(fact.name, seed), answer))
        for name in made_up:
            refusal = phrases.refusal(name)
            found.append(NameQuestion("unknown", name, held, _marked(name, seed), refusal))
    return tuple(found)


@lru_cache(maxsize=2)
def index(fraction: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Real names, and made-up ones that no question is about."""
    (held_out, _, asked), (training, _, also_asked) = _sides(fraction, seed)
    taken = {*asked, *also_asked}
    made_up = made_up_names(training, INDEXED, seed + 1, taken)
    real = sorted(fact.name for fact in (*held_out, *training))
    return tuple(real), tuple(one.name for one in made_up)


def indexed(name: str, exists: bool) -> str:
    """A line of the index: the name twice, as an answer repeats the one that it was asked about."""
    return f"`{name}`: `{name}` is {'known' if exists else 'unknown'}."


def drill(number: int, fraction: float, seed: int) -> str:
    """A question about a made-up name, and the name again: nothing is said of whether it exists."""
    taken, owners, leaves = _parts(fraction, seed)
    choose = random.Random(f"drill {seed} {number}")
    while True:
        name = f"{choose.choice(owners)}.{choose.choice(leaves)}"
        if name not in taken:
            return f"{_asked(name, seed)}\n`{name}`."


@lru_cache(maxsize=2)
def _parts(fraction: float, seed: int) -> tuple[frozenset[str], tuple[str, ...], tuple[str, ...]]:
    """Names that are indexed or asked about; owners and last parts of training's functions."""
    real, made_up = index(fraction, seed)
    asked = (
        name
        for facts, _, unknown in _sides(fraction, seed)
        for name in (*(f.name for f in facts), *unknown)
    )
    _, training = split(fraction, seed)
    functions = [f for f in training if f.kind == "function" and _is_short(f.name, LONGEST + 5)]
    owners, leaves = {f.owner for f in functions}, {f.leaf for f in functions}
    return frozenset((*real, *made_up, *asked)), tuple(sorted(owners)), tuple(sorted(leaves))


@lru_cache(maxsize=2)
def _sides(fraction: float, seed: int) -> tuple[Side, Side]:
    """(real names, whether held out, made-up names) of the held-out side, and of training's."""
    held_out, training = (
        [fact for fact in side if fact.kind == "function" and _is_short(fact.name)]
        for side in split(fraction, seed)
    )
    held_out += [fact for fact in training if is_held_out(f"name {fact.name}", HELD_OUT, seed)]
    training = [fact for fact in training if not is_held_out(f"name {fact.name}", HELD_OUT, seed)]
    unknown = [one.name for one in made_up_names(held_out, MADE_UP, seed)]
    also = [one.name for one in made_up_names(training, MADE_UP, seed, unknown)]
    return (held_out, True, unknown), (training, False, also)


def _longer(fraction: float, seed: int) -> Side:
    """More of training's names, and as large a share of made-up ones: repeating the name that one was asked
    about takes many names to learn. Their answers are short, since what they say can't be learned."""
    (held_out, _, unknown), (short, _, also_unknown) = _sides(fraction, seed)
    taken = {fact.name for fact in (*held_out, *short)}
    _, training = split(fraction, seed)
    facts = [
        fact
        for fact in training
        if fact.kind in ("function", "class")
        and _is_short(fact.name, LONGEST_TRAINED)
        and fact.name not in taken
        and len(phrases.what(fact).split()) <= MOST_WORDS
    ]
    made_up = made_up_names(facts, MADE_UP, seed, {*unknown, *also_unknown})
    return facts, False, [one.name for one in made_up]


def _is_short(name: str, longest: int = LONGEST) -> bool:
    return name.count(".") == 1 and len(name) <= longest


def _marked(name: str, seed: int) -> str:
    """A question about a name that stands in code's marks, which tell where it begins and ends."""
    return Chooser(name, seed).one("what", phrases.WHAT).format(f"`{name}`")


def _asked(name: str, seed: int) -> str:
    choose = Chooser(name, seed)
    return phrases.Questions(name, "", choose).what(0)
