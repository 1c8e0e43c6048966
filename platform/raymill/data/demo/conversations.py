"""The demonstration's conversations and prompts: exercises of every kind, and questions about names.

The same ones are fine-tuned on, compared and rewarded; each is held out, or not, everywhere.
"""

from __future__ import annotations

from functools import lru_cache

from raymill.data.demo.exercises import KINDS, Exercise, exercises
from raymill.data.demo.names import name_questions
from raymill.data.demo.stdlib_conversations import Entry
from raymill.data.store.split import unit_hash

TRAINING = dict.fromkeys(KINDS, 500) | {"default": 800, "larger": 900, "beyond": 250}
HELD_OUT = 250


@lru_cache(maxsize=2)
def conversations(fraction: float, seed: int) -> tuple[Entry, ...]:
    """All of them, the same in every process of this Python version."""
    found = [
        _entry(one.key, one.kind, held_out, one.question, one.answer, one.key)
        for kind in KINDS
        for held_out in (False, True)
        for one in _distinct(kind, held_out, seed)
    ]
    found += [
        _entry(one.name, one.kind, one.held_out, one.question, one.answer, one.name)
        for one in name_questions(fraction, seed)
    ]
    # Whoever takes the first so many takes some of every kind.
    return tuple(sorted(found, key=lambda one: unit_hash(f"order {one.record}", seed)))


def _distinct(kind: str, held_out: bool, seed: int) -> list[Exercise]:
    """Exercises that differ in what they are about and in what they ask."""
    wanted = HELD_OUT if held_out else TRAINING[kind]
    found: dict[str, Exercise] = {}
    for one in exercises(kind, held_out, seed, "conversation"):
        found.setdefault(one.question, one)
        if len(found) == wanted:
            break
    return list(found.values())


def _entry(name: str, kind: str, held_out: bool, question: str, answer: str, group: str) -> Entry:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return Entry(name, group, held_out, kind, {"messages": messages})
