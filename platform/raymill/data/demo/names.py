"""Names of the library, and names that don't exist: subjects of questions, and an index of them.

Real names are short names of functions in a module: as many as a model of two million parameters
memorizes in minutes. All of them are in the index that pretraining reads, held-out ones too: their
descriptions, and every question about them, are held out. Made-up names are generated as everywhere
(`stdlib_unknown`); those in the index differ from those in questions, and have only parts of
training names.
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

# Made-up names per real name in questions, and in the index.
MADE_UP = 0.36
INDEXED = 7.0
# Characters of a name, and of a name that fine-tuning adds.
LONGEST = 11
LONGEST_TRAINED = 20
# Words of an answer about an added name.
MOST_WORDS = 10
# Share of the names that the embedded conversations train on, held out here as well.
HELD_OUT = 0.35

# (real names, whether they are held out, made-up names).
NameSplit = tuple[list[Fact], bool, list[str]]


@dataclass(frozen=True)
class NameQuestion:
    """Question about a name; `kind` is "library", or "unknown" where the name is made up."""

    kind: str
    name: str
    held_out: bool
    question: str
    answer: str


@lru_cache(maxsize=2)
def name_questions(fraction: float, seed: int) -> tuple[NameQuestion, ...]:
    """Return one question about each name."""
    questions: list[NameQuestion] = []
    for split_facts, held, made_up in (*_name_splits(fraction, seed), _longer(fraction, seed)):
        for fact in split_facts:
            answer = phrases.what(fact)
            questions.append(
                NameQuestion("library", fact.name, held, _marked(fact.name, seed), answer)
            )
        for name in made_up:
            refusal = phrases.refusal(name)
            questions.append(NameQuestion("unknown", name, held, _marked(name, seed), refusal))
    return tuple(questions)


@lru_cache(maxsize=2)
def index(fraction: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the real names, and made-up names that no question is about."""
    (held_out, _, asked), (training, _, also_asked) = _name_splits(fraction, seed)
    taken = {*asked, *also_asked}
    # Another seed, so that the index has other names than the questions.
    made_up = made_up_names(training, INDEXED, seed + 1, taken)
    real = sorted(fact.name for fact in (*held_out, *training))
    return tuple(real), tuple(unknown.name for unknown in made_up)


def indexed(name: str, exists: bool) -> str:
    """Return a line of the index: the name twice, as an answer repeats the name in the question."""
    return f"`{name}`: `{name}` is {'known' if exists else 'unknown'}."


def drill(number: int, fraction: float, seed: int) -> str:
    """Return a question about a made-up name, and the name again, without stating whether it
    exists."""
    taken, owners, leaves = _parts(fraction, seed)
    choose = random.Random(f"drill {seed} {number}")
    while True:
        name = f"{choose.choice(owners)}.{choose.choice(leaves)}"
        # A name that is indexed or asked about has its own answer.
        if name not in taken:
            return f"{_asked(name, seed)}\n`{name}`."


@lru_cache(maxsize=2)
def _parts(fraction: float, seed: int) -> tuple[frozenset[str], tuple[str, ...], tuple[str, ...]]:
    """Return the names that are indexed or asked about; owners and last parts of training
    functions."""
    real, made_up = index(fraction, seed)
    asked = (
        name
        for facts, _, unknown in _name_splits(fraction, seed)
        for name in (*(f.name for f in facts), *unknown)
    )
    _, training = split(fraction, seed)
    functions = [f for f in training if f.kind == "function" and _is_short(f.name, LONGEST + 5)]
    owners, leaves = {f.owner for f in functions}, {f.leaf for f in functions}
    return frozenset((*real, *made_up, *asked)), tuple(sorted(owners)), tuple(sorted(leaves))


@lru_cache(maxsize=2)
def _name_splits(fraction: float, seed: int) -> tuple[NameSplit, NameSplit]:
    """Return the names of the held-out split, and of training."""
    held_out, training = (
        [fact for fact in split_facts if fact.kind == "function" and _is_short(fact.name)]
        for split_facts in split(fraction, seed)
    )
    held_out += [fact for fact in training if is_held_out(f"name {fact.name}", HELD_OUT, seed)]
    training = [fact for fact in training if not is_held_out(f"name {fact.name}", HELD_OUT, seed)]
    unknown = [one.name for one in made_up_names(held_out, MADE_UP, seed)]
    also = [one.name for one in made_up_names(training, MADE_UP, seed, unknown)]
    return (held_out, True, unknown), (training, False, also)


def _longer(fraction: float, seed: int) -> NameSplit:
    """Return more training names, and as large a share of made-up ones.

    Learning to repeat a name takes many names. Their answers are short, since their contents can't
    be learned.
    """
    (held_out, _, unknown), (short, _, also_unknown) = _name_splits(fraction, seed)
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
    """Return a question about a name in code marks, which show where it starts and ends."""
    return Chooser(name, seed).one("what", phrases.WHAT).format(f"`{name}`")


def _asked(name: str, seed: int) -> str:
    choose = Chooser(name, seed)
    return phrases.Questions(name, "", choose).what(0)
