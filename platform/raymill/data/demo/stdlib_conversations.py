"""Embedded conversations, `data=stdlib_chat`: questions about the running Python's library.

Every answer is generated from documentation by rule, short and regular, for models of a few million
parameters. About a quarter of the questions that contain a name ask about one that doesn't exist,
in the same words, and are answered "I don't know of `json.sqrt`."

Functions are assigned to training or held out. A description and every name that has it stay
together; functions of the module families that pretraining holds out (same fraction, same seed) are
held out; so is a share of the others by a seeded hash. A made-up name takes both of its parts from
one split, and belongs to that split only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from raymill.data.demo import stdlib_corpus
from raymill.data.demo import stdlib_phrases as phrases
from raymill.data.demo.stdlib_facts import Fact, facts
from raymill.data.demo.stdlib_phrases import Chooser, Turn
from raymill.data.demo.stdlib_source import corpus
from raymill.data.demo.stdlib_unknown import MadeUp, made_up_names
from raymill.data.store.split import is_held_out
from raymill.durable import JsonObject

# Probability of each kind of question about a name; the first question, what it does, is always asked.
AGAIN, ARGUMENTS, SIGNATURE, HAS, WHICH, MODULE, TURNS = 0.04, 0.42, 0.12, 0.12, 0.36, 0.25, 0.13
# Made-up names per real name.
MADE_UP = 0.36
SYSTEM = 0.05
MOST_ARGUMENTS = 8
LONGEST_SIGNATURE = 110


@dataclass(frozen=True)
class ConversationEntry:
    """One conversation about `name`; those of a `group` stay in one split.

    `kind` is that of the question: what, arguments, signature, has, which, module; "unknown" where
    the name is made up; "turns" for several questions.
    """

    name: str
    group: str
    held_out: bool
    kind: str
    record: JsonObject


def conversations(fraction: float, seed: int) -> list[ConversationEntry]:
    """Return all conversations, the same in every process of this Python version.

    `fraction` and `seed` are those of the pretraining corpus, so that its held-out families stay
    so.
    """
    return list(_conversations(fraction, seed))


@lru_cache(maxsize=4)
def _conversations(fraction: float, seed: int) -> tuple[ConversationEntry, ...]:
    held_out, training = split(fraction, seed)
    # A question by description or last part needs a unique answer.
    alone = Counter(group_of(fact.text) for fact in facts())
    leaves = Counter(fact.leaf for fact in facts())
    entries: list[ConversationEntry] = []
    taken: set[str] = set()
    for split_facts, held in ((held_out, True), (training, False)):
        unknown = made_up_names(split_facts, MADE_UP, seed, taken)
        taken |= {name.name for name in unknown}
        for fact in split_facts:
            group = group_of(fact.text)
            unique = alone[group] == 1, leaves[fact.leaf] == 1
            for kind, turns in _about(fact, unique, seed):
                entries.append(_entry(fact.name, group, held, kind, turns, seed))
        for made_up in unknown:
            for kind, turns in _about_made_up(made_up, seed):
                group = f"unknown {made_up.name}"
                entries.append(_entry(made_up.name, group, held, kind, turns, seed))
    return tuple(entries)


def split(fraction: float, seed: int) -> tuple[list[Fact], list[Fact]]:
    """Return held-out facts and training facts.

    A fact that would train, but whose description names a held-out function, is in neither.
    """
    families = stdlib_corpus.held_out_families(corpus(), fraction, seed)
    groups = {group_of(fact.text) for fact in facts() if fact.family in families}
    held_out: list[Fact] = []
    training: list[Fact] = []
    for fact in facts():
        group = group_of(fact.text)
        held = group in groups or is_held_out(f"stdlib_chat {group}", fraction, seed)
        (held_out if held else training).append(fact)
    # A description that mentions a held-out function would teach its name.
    names = {fact.name for fact in held_out if "." in fact.name}
    return held_out, [fact for fact in training if not _mentioned(fact) & names]


def group_of(text: str) -> str:
    """Return a key that is equal for descriptions that differ only in case and punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _mentioned(fact: Fact) -> frozenset[str]:
    return frozenset(re.findall(r"\w+(?:\.\w+)+", f"{fact.text} {fact.signature}"))


def _about(fact: Fact, unique: tuple[bool, bool], seed: int) -> Iterator[tuple[str, list[Turn]]]:
    """Yield conversations about a fact.

    `unique`: whether no other name has this description, and whether none has this last part.
    """
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
    """Yield the same questions as often as for the real function whose last part the name has."""
    choose = Chooser(made_up.name, seed)
    ask = phrases.Questions(made_up.name, made_up.leaf.kind, choose)
    refusal = phrases.refusal(made_up.name)
    yield "unknown", [(ask.what(0), refusal)]
    if choose.happens("again", AGAIN):
        yield "unknown", [(ask.what(1), refusal)]
    arguments = made_up.leaf.arguments
    if (
        arguments is not None
        and len(arguments) <= MOST_ARGUMENTS
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
) -> ConversationEntry:
    choose = Chooser(f"{name} {turns[0][0]}", seed)
    messages = []
    if choose.happens("system", SYSTEM):
        messages.append({"role": "system", "content": choose.one("system prompt", phrases.SYSTEM)})
    for question, answer in turns:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return ConversationEntry(name, group, held_out, kind, {"messages": messages})
