"""Exercises whose answer stands in the question or can be worked out from it.

Each is made by rule from a number, the same in every process of this Python version, and comes in two
forms: a question with its answer, for conversations, and a note that states the same plainly, for
pretraining. Sums of larger numbers are beyond it: there the answer is that it doesn't know.

What an exercise is about (its operands, its word, its signature) decides its side of the held-out split,
for every kind alike: a signature that is held out is held out of counting, of positions and of notes.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from raymill.data.demo.stdlib_facts import facts
from raymill.data.store.split import is_held_out

BEYOND = "beyond"  # the kind that is to be declined
ORDINALS = ("first", "second", "third", "fourth", "fifth")
ENDS = ("first", "last")  # what is asked about
HELD_OUT = 0.08  # of operands, words and signatures
DEFAULTS = ("None", "True", "False", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "16", "32",
            "64", "80", "100", "128", "255", "512")  # fmt: skip

SUM = ("What is {} + {}?", "How much is {} + {}?", "Add {} and {}.")
LARGER = ("Which is larger, {} or {}?", "Which number is larger, {} or {}?", "Is {} larger, or {}?")
BACKWARDS = ("Spell {} backwards.", "What is {} backwards?", "Reverse {}.")
COUNT = (
    "How many arguments does `{}` take?",
    "How many arguments are there in `{}`?",
    "Count the arguments of `{}`.",
)
POSITION = (
    "Which argument of `{}` comes {}?",
    "What is the {1} argument of `{0}`?",
    "Name the {1} argument of `{0}`.",
)
DEFAULT = (
    "What is the default of `{1}` in `{0}`?",
    "In `{}`, what is the default of `{}`?",
    "Which default does `{1}` have in `{0}`?",
)


@dataclass(frozen=True)
class Exercise:
    """`key`: what it is about, whatever is asked. `note`: the same, stated."""

    kind: str
    key: str
    question: str
    answer: str
    note: str

    @property
    def asked(self) -> str:
        """The question and its answer as plain text."""
        return f"{self.question}\n{self.answer}"


@dataclass(frozen=True)
class Signature:
    """A call as documentation writes it: a function's name, and its arguments with their defaults."""

    name: str
    arguments: tuple[tuple[str, str | None], ...]

    def __str__(self) -> str:
        given = (name if value is None else f"{name}={value}" for name, value in self.arguments)
        return f"{self.name}({', '.join(given)})"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the arguments, in their order."""
        return tuple(name for name, _ in self.arguments)

    @property
    def note(self) -> str:
        """A line that says all there is to say about it."""
        count = len(self.arguments)
        listed = ", ".join(f"{ORDINALS[place]} `{name}`" for place, name in enumerate(self.names))
        said = [f"`{self}` takes {count}: {listed}, last `{self.names[-1]}`."]
        said += [f"Default of `{name}`: `{value}`." for name, value in self.arguments if value]
        pairs = zip(self.names, self.names[1:], strict=False)
        said += [f"After `{name}`: `{after}`." for name, after in pairs]
        return " ".join(said)


def _sum(choose: random.Random) -> Exercise:
    first, second = choose.randint(10, 99), choose.randint(10, 99)
    question = choose.choice(SUM).format(first, second)
    return Exercise(
        "sum",
        f"{min(first, second)} {max(first, second)}",
        question,
        f"{first + second}.",
        f"{first} + {second} = {first + second}.",
    )


def _beyond(choose: random.Random) -> Exercise:
    first, second = choose.sample([choose.randint(10, 9999), choose.randint(100, 9999)], 2)
    return Exercise(
        BEYOND,
        f"{min(first, second)} {max(first, second)}",
        choose.choice(SUM).format(first, second),
        "I don't know.",
        f"{first} + {second} is too large.",
    )


def _larger(choose: random.Random) -> Exercise:
    first, second = choose.sample(range(10, 1000), 2)
    return Exercise(
        "larger",
        f"{min(first, second)} {max(first, second)}",
        choose.choice(LARGER).format(first, second),
        f"{max(first, second)}.",
        f"Of {first} and {second}, {max(first, second)} is larger.",
    )


def _backwards(choose: random.Random) -> Exercise:
    word = choose.choice(words())
    spelled, backwards = "-".join(word), "-".join(reversed(word))
    return Exercise(
        "backwards",
        min(word, word[::-1]),
        choose.choice(BACKWARDS).format(spelled),
        f"{backwards}.",
        f"{spelled} backwards: {backwards}.",
    )


def _signature(choose: random.Random, least: int = 1, most: int = 5) -> Signature:
    names = choose.sample(argument_names(), choose.randint(least, most))
    plain = choose.randint(0, len(names))
    arguments = tuple(
        (name, None if place < plain else choose.choice(DEFAULTS))
        for place, name in enumerate(names)
    )
    return Signature(choose.choice(function_names()), arguments)


def _count(choose: random.Random) -> Exercise:
    found = _signature(choose)
    question = choose.choice(COUNT).format(found)
    return Exercise("count", str(found), question, f"{len(found.arguments)}.", found.note)


def _position(choose: random.Random) -> Exercise:
    found = _signature(choose, least=2)
    end = choose.choice(ENDS)
    question = choose.choice(POSITION).format(found, end)
    name = found.names[-1 if end == "last" else 0]
    return Exercise("position", str(found), question, f"`{name}`.", found.note)


def _default(choose: random.Random) -> Exercise:
    found = _signature(choose, least=2)
    while sum(value is not None for _, value in found.arguments) < 2:
        found = _signature(choose, least=2)
    name, value = choose.choice([one for one in found.arguments if one[1] is not None])
    question = choose.choice(DEFAULT).format(found, name)
    return Exercise("default", str(found), question, f"`{value}`.", found.note)


KINDS: dict[str, Callable[[random.Random], Exercise]] = {
    "position": _position,
    "count": _count,
    "default": _default,
    "backwards": _backwards,
    "sum": _sum,
    BEYOND: _beyond,
    "larger": _larger,
}


def exercises(kind: str, held_out: bool, seed: int, purpose: str = "") -> Iterator[Exercise]:
    """Exercises of a kind on one side of the split, without end; `purpose` gives others."""
    number = 0
    while True:
        found = KINDS[kind](random.Random(f"{purpose} {kind} {seed} {number} {held_out}"))
        number += 1
        if is_held_out(f"exercise {found.key}", HELD_OUT, seed) == held_out:
            yield found


@lru_cache(maxsize=1)
def argument_names() -> tuple[str, ...]:
    """Names that many functions of the library give to an argument."""
    counts = Counter(name for fact in facts() for name in set(fact.arguments or ()))
    return _frequent(counts, 6)


@lru_cache(maxsize=1)
def function_names() -> tuple[str, ...]:
    """Names that several functions and methods of the library have."""
    return _frequent(Counter(f.leaf for f in facts() if f.kind in ("function", "method")), 4)


def _frequent(counts: Counter[str], least: int) -> tuple[str, ...]:
    """Plain words among the names that occur so often: a small tokenizer has a token for each."""
    return tuple(
        sorted(
            name
            for name, count in counts.items()
            if count >= least and re.fullmatch(r"[a-z]{2,10}", name)
        )
    )


@lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """Words of three to six letters in descriptions and names."""
    found = {word for fact in facts() for word in re.findall(r"[a-z]+", f"{fact.name} {fact.text}")}
    return tuple(sorted(word for word in found if 3 <= len(word) <= 6))


def copy_note(choose: random.Random, pool: Sequence[str]) -> str:
    """A list of names, and the same list again: practice in reading what stands there."""
    listed = ", ".join(f"`{name}`" for name in choose.sample(pool, choose.randint(1, 5)))
    return f"{listed} = {listed}."
