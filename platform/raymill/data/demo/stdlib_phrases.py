"""Phrasings of each question of the embedded conversations, and the answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from raymill.data.demo.stdlib_facts import Fact
from raymill.data.demo.stdlib_sentence import predicate, sentence_about
from raymill.data.store.split import hash_fraction

REFUSAL = "I don't know of"
SYSTEM = (
    "You answer questions about Python's standard library.",
    "You are a helpful assistant. Answer in one sentence.",
    "You know Python's standard library. Say so when you don't know a name.",
)
WHAT = (
    "What does {} do?",
    "What is {} for?",
    "What is {}?",
    "what does {} do",
    "Describe {} in one sentence.",
    "Explain {}.",
    "Tell me what {} does.",
    "Can you explain {}?",
)
WHAT_MODULE = ("What is the {} module for?", "What is the module {}?", "Describe the {} module.")
ARGUMENTS = (
    "What are the arguments of {}?",
    "Which arguments does {} take?",
    "What arguments does {} accept?",
    "Which parameters does {} have?",
    "what arguments does {} take",
    "List the arguments of {}.",
)
SIGNATURE = ("What is the signature of {}?", "How do I call {}?", "Show me the signature of {}.")
HAS = ("Does {owner} have {leaf}?", "Is there {leaf} in {owner}?", "Has {owner} got {leaf}?")
WHICH = ("Which {kind} {does}?", "What {kind} {does}?", "Name the {kind} that {does}.")
MODULE = (
    "Which module has {}?",
    "Which module is {} in?",
    "Where is {} defined?",
    "From which module do I import {}?",
)
AND_ARGUMENTS = ("And its arguments?", "What arguments does it take?", "Which arguments has it?")
AND_MODULE = ("Where is it?", "Which module is it in?", "And where do I import it from?")
AND_WHAT = ("And {}?", "And what does {} do?", "What about {}?")

# (question, answer).
Turn = tuple[str, str]


@dataclass(frozen=True)
class Chooser:
    """Choices that depend only on a name and a seed."""

    name: str
    seed: int

    def number(self, purpose: str) -> float:
        """Return a number in [0, 1)."""
        return hash_fraction(f"{purpose} {self.name}", self.seed)

    def happens(self, purpose: str, probability: float) -> bool:
        """Return True with that probability."""
        return self.number(purpose) < probability

    def one(self, purpose: str, choices: Sequence[str], step: int = 0) -> str:
        """Return one of the choices; each step gives another one."""
        return choices[(int(self.number(purpose) * len(choices)) + step) % len(choices)]


@dataclass(frozen=True)
class Questions:
    """Questions about one name, whether real or made up."""

    name: str
    kind: str
    choose: Chooser

    def what(self, which: int) -> str:
        """Ask for its purpose; each `which` has another phrasing."""
        choices = WHAT_MODULE if self.kind == "module" else WHAT
        return self._fill("what", choices, which)

    def arguments(self) -> str:
        """Ask for its arguments."""
        return self._fill("arguments?", ARGUMENTS)

    def signature(self) -> str:
        """Ask for its signature."""
        return self._fill("signature?", SIGNATURE)

    def has(self, owner: str, leaf: str) -> str:
        """Ask whether a module or class has it."""
        pattern = self.choose.one("has?", HAS)
        return pattern.format(owner=self._shown(owner), leaf=self._shown(leaf))

    def which(self, fact: Fact) -> str | None:
        """Ask for the name with this description; None if that can't be asked in a sentence."""
        does = predicate(fact.text)
        if does is None or fact.leaf.lower() in re.findall(r"\w+", does.lower()):
            return None
        kind = f"method of `{fact.owner}`" if fact.kind == "method" else fact.kind
        return self.choose.one("which?", WHICH).format(kind=kind, does=does.rstrip("."))

    def module(self, leaf: str) -> str:
        """Ask for its module."""
        return self.choose.one("module?", MODULE).format(self._shown(leaf))

    def and_arguments(self) -> str:
        """Ask for its arguments, as a second question."""
        return self.choose.one("and arguments", AND_ARGUMENTS)

    def and_module(self) -> str:
        """Ask for its module, as a third question."""
        return self.choose.one("and module", AND_MODULE)

    def and_what(self, name: str, kind: str) -> str:
        """Ask about another name, as a second question."""
        pattern = self.choose.one("and what", AND_WHAT)
        return pattern.format(Questions(name, kind, self.choose)._shown(name))

    def _fill(self, purpose: str, choices: Sequence[str], step: int = 0) -> str:
        return self.choose.one(purpose, choices, step).format(self._shown(self.name, step))

    def _shown(self, name: str, step: int = 0) -> str:
        """Write a name as people do: `json.dumps`, json.dumps and sometimes json.dumps()."""
        number = self.choose.number(f"shown {step}")
        call = "()" if self.kind == "function" and number > 0.9 and name == self.name else ""
        return f"`{name}{call}`" if number < 0.5 else f"{name}{call}"


def what(fact: Fact) -> str:
    """Answer: `json.dumps` serializes obj to a JSON formatted str."""
    return sentence_about(fact.name, fact.text)


def arguments(fact: Fact) -> str:
    """Answer: `textwrap.fill` takes `text`, `width` and `**kwargs`."""
    names = [f"`{name}`" for name in fact.arguments or ()]
    if not names:
        return f"`{fact.name}` takes no arguments."
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"`{fact.name}` takes {listed}."


def signature(fact: Fact) -> str:
    """Answer: Call it as `textwrap.fill(text, width=70, **kwargs)`."""
    return f"Call it as `{fact.name}{fact.signature}`."


def has(fact: Fact) -> str:
    """Answer yes, and describe it."""
    return f"Yes, {sentence_about(fact.name, fact.text)}"


def which(fact: Fact) -> str:
    """Answer: `math.sin`."""
    return f"`{fact.name}`."


def module(fact: Fact) -> str:
    """Answer: `heappush` is in the `heapq` module."""
    return f"`{fact.leaf}` is in the `{fact.owner}` module."


def refusal(name: str) -> str:
    """Answer: I don't know of `json.sqrt`."""
    return f"{REFUSAL} `{name}`."
