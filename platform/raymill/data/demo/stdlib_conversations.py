"""The embedded conversations, `data=stdlib_chat`: questions about the running Python's library.

Every answer is made of documentation by rule, short and regular, for models of a few million
parameters. About a quarter of the questions that carry a name ask about one that doesn't exist, in
the same words, and are answered "I don't know of `json.sqrt`."

What training may see is decided by function. A description and every name that has it stay on one
side; functions of the module families that pretraining holds out (same fraction, same seed) are held
out; so is a share of the others by a seeded hash. Made-up names take both parts from one side, so
they, too, stand on one side only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from raymill.data.demo import stdlib_corpus
from raymill.data.demo import stdlib_phrases as phrases
from raymill.data.demo.stdlib_facts import Fact, facts
from raymill.data.demo.stdlib_phrases import Chooser, Turn
from raymill.data.demo.stdlib_source import corpus
from raymill.data.demo.stdlib_unknown import MadeUp, made_up_names
from raymill.data.store.split import is_held_out

# How often a name is asked about in each way; the first question, what it does, comes always.
AGAIN, ARGUMENTS, SIGNATURE, HAS, WHICH, MODULE, TURNS = 0.04, 0.42, 0.12, 0.12, 0.36, 0.25, 0.13
MADE_UP = 0.36  # made-up names per real name
SYSTEM = 0.05
MOST_ARGUMENTS = 8
LONGEST_SIGNATURE = 110


@dataclass(frozen=True)
class Entry:
    """One conversation. `name`: what is asked about. `group`: what stays on one side with it.

    `kind`: of the question: what, arguments, signature, has, which, module; "unknown" where the name
    is made up; "turns" for several questions.
    """

    name: str
    group: str
    held_out: bool
    kind: str
    record: dict[str, Any]


def conversations(fraction: float, seed: int) -> list[Entry]:
    """All conversations, the same in every process of this Python version.

    `fraction` and `seed` are the ones of the pretraining corpus, whose held-out families are kept.
    """
    return list(_conversations(fraction, seed))


@lru_cache(maxsize=4)
def _conversations(fraction: float, seed: int) -> tuple[Entry, ...]:
    held_out, training = split(fraction, seed)
    alone = Counter(group_of(fact.text) for fact in facts())
    leaves = Counter(fact.leaf for fact in facts())
    found: list[Entry] = []
    taken: set[str] = set()
    for side, held in ((held_out, True), (training, False)):
        unknown = made_up_names(side, MADE_UP, seed, taken)
        taken |= {name.name for name in unknown}
        for fact in side:
            group = group_of(fact.text)
            unique = alone[group] == 1, leaves[fact.leaf] == 1
            for kind, turns in _about(fact, unique, seed):
                found.append(_entry(fact.name, group, held, kind, turns, seed))
        for made_up in unknown:
            for kind, turns in _about_made_up(made_up, seed):
                group = f"unknown {made_up.name}"
                found.append(_entry(made_up.name, group, held, kind, turns, seed))
    return tuple(found)


def split(fraction: float, seed: int) -> tuple[list[Fact], list[Fact]]:
    """Held-out facts and training facts.

    Facts of the training side whose description names a held-out function are in neither.
    """
    families = stdlib_corpus.held_out_families(corpus(), fraction, seed)
    groups = {group_of(fact.text) for fact in facts() if fact.family in families}
    held_out: list[Fact] = []
    training: list[Fact] = []
    for fact in facts():
        group = group_of(fact.text)
        held = group in groups or is_held_out(f"stdlib_chat {group}", fraction, seed)
        (held_out if held else training).append(fact)
    names = {fact.name for fact in held_out if "." in fact.name}
    return held_out, [fact for fact in training if not _mentioned(fact) & names]


def group_of(text: str) -> str:
    """Descriptions that differ in case and punctuation only are one."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _mentioned(fact: Fact) -> frozenset[str]:
    return frozenset(re.findall(r"\w+(?:\.\w+)+", f"{fact.text} {fact.signature}"))


def _about(fact: Fact, unique: tuple[bool, bool], seed: int) -> Iterator[tuple[str, list[Turn]]]:
    """`unique`: whether no other name has this description, or this last part."""
    choose = Chooser(fact.name, seed)
    ask = phrases.Questions(fact.name, fact.kind, choose)
    yield "what", [(ask.what(0), phrases.what(fact))]
    if choose.happens("again", AGAIN):
        yield "what", [(ask.what(1), phrases.what(fact))]
    arguments = fact.arguments is not None and len(fact.arguments) <= MOST_ARGUMENTS
    if arguments and choose.happens("arguments", ARGUMENTS):
        yield "arguments", [(ask.arguments(), phrases.arguments(fact))]
    signature = fact.signature and len(fact.name + fact.signature) <= LONGEST_SIGNATURE
    if signature and choose.happens("signature", SIGNATURE):
        yield "signature", [(ask.signature(), phrases.signature(fact))]
    if fact.owner and choose.happens("has", HAS):
        yield "has", [(ask.has(fact.owner, fact.leaf), phrases.has(fact))]
    which = ask.which(fact) if unique[0] else None
    if which and choose.happens("which", WHICH):
        yield "which", [(which, phrases.which(fact))]
    importable = fact.owner and fact.kind in ("function", "class") and unique[1]
    if importable and choose.happens("module", MODULE):
        yield "module", [(ask.module(fact.leaf), phrases.module(fact))]
    if arguments and choose.happens("turns", TURNS):
        first = (ask.what(2), phrases.what(fact))
        if which and choose.happens("which first", 0.4):
            first = (which, phrases.which(fact))
        turns = [first, (ask.and_arguments(), phrases.arguments(fact))]
        if importable and choose.happens("third", 0.5):
            turns.append((ask.and_module(), phrases.module(fact)))
        yield "turns", turns


def _about_made_up(made_up: MadeUp, seed: int) -> Iterator[tuple[str, list[Turn]]]:
    """The same questions as often as for the real function whose last part it has."""
    choose = Chooser(made_up.name, seed)
    ask = phrases.Questions(made_up.name, made_up.leaf.kind, choose)
    refusal = phrases.refusal(made_up.name)
    yield "unknown", [(ask.what(0), refusal)]
    if choose.happens("again", AGAIN):
        yield "unknown", [(ask.what(1), refusal)]
    given = made_up.leaf.arguments
    if (
        given is not None
        and len(given) <= MOST_ARGUMENTS
        and choose.happens("arguments", ARGUMENTS)
    ):
        yield "unknown", [(ask.arguments(), refusal)]
    if made_up.leaf.signature and choose.happens("signature", SIGNATURE):
        yield "unknown", [(ask.signature(), refusal)]
    if choose.happens("has", HAS):
        yield "unknown", [(ask.has(made_up.owner.owner, made_up.leaf.leaf), refusal)]
    if choose.happens("turns", TURNS):
        real = made_up.owner
        known = (ask.and_what(real.name, real.kind), phrases.what(real))
        if choose.happens("known first", 0.5):
            first = phrases.Questions(real.name, real.kind, choose).what(2)
            unknown = (ask.and_what(made_up.name, made_up.leaf.kind), refusal)
            yield "turns", [(first, phrases.what(real)), unknown]
        else:
            yield "turns", [(ask.what(2), refusal), known]


def _entry(
    name: str, group: str, held_out: bool, kind: str, turns: Sequence[Turn], seed: int
) -> Entry:
    choose = Chooser(f"{name} {turns[0][0]}", seed)
    messages = []
    if choose.happens("system", SYSTEM):
        messages.append({"role": "system", "content": choose.one("system prompt", phrases.SYSTEM)})
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return Entry(name, group, held_out, kind, {"messages": messages})
