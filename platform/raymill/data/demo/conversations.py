"""Conversations and prompts of the demonstration: exercises of every kind, and questions about
names.

Fine-tuning, preference data and rewards use the same ones; each is held out everywhere or nowhere.
"""

from __future__ import annotations

from functools import lru_cache

from raymill.data.demo.exercises import KINDS, Exercise, exercises
from raymill.data.demo.names import name_questions
from raymill.data.demo.stdlib_conversations import ConversationEntry
from raymill.data.store.split import hash_fraction

TRAINING = dict.fromkeys(KINDS, 500) | {"default": 800, "larger": 900, "beyond": 250}
HELD_OUT = 250


@lru_cache(maxsize=2)
def conversations(fraction: float, seed: int) -> tuple[ConversationEntry, ...]:
    """Return all conversations, the same in every process of this Python version."""
    entries = [
        _entry(item.key, item.kind, held_out, item.question, item.answer, item.key)
        for kind in KINDS
        for held_out in (False, True)
        for item in _distinct(kind, held_out, seed)
    ]
    entries += [
        _entry(item.name, item.kind, item.held_out, item.question, item.answer, item.name)
        for item in name_questions(fraction, seed)
    ]
    # In this order, any first part contains some of every kind.
    return tuple(sorted(entries, key=lambda entry: hash_fraction(f"order {entry.record}", seed)))


def _distinct(kind: str, held_out: bool, seed: int) -> list[Exercise]:
    """Return exercises that differ in their subject and in their question."""
    wanted = HELD_OUT if held_out else TRAINING[kind]
    by_question: dict[str, Exercise] = {}
    for exercise in exercises(kind, held_out, seed, "conversation"):
        by_question.setdefault(exercise.question, exercise)
        if len(by_question) == wanted:
            break
    return list(by_question.values())


def _entry(
    name: str, kind: str, held_out: bool, question: str, answer: str, group: str
) -> ConversationEntry:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return ConversationEntry(name, group, held_out, kind, {"messages": messages})
