"""What a set of prompts is like: counts that add up over units, and how they read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from raymill.data.prompts.prompt import Prompt
from raymill.data.text.counters import Counters, histogram, length_class


@dataclass
class Statistics(Counters):
    """Sums over prompts; histograms are by the power of two that is at least the length."""

    prompts: int = 0
    tokens: int = 0  # with the beginning of the assistant's turn
    lengths: Counter[str] = field(default_factory=Counter)  # prompts by tokens
    turns: Counter[str] = field(default_factory=Counter)  # messages by role
    tools: int = 0  # prompts in which tools may be called
    verifiers: Counter[str] = field(default_factory=Counter)  # prompts by verifier
    answered: Counter[str] = field(default_factory=Counter)  # those with a reference answer

    def add(self, prompt: Prompt, tokens: int) -> None:
        """Count one prompt."""
        self.prompts += 1
        self.tokens += tokens
        self.lengths[length_class(tokens)] += 1
        self.turns.update(message["role"] for message in prompt.messages)
        self.tools += prompt.tools is not None
        verifier = prompt.verifier or "none"
        self.verifiers[verifier] += 1
        self.answered[verifier] += prompt.answer is not None

    def lines(self, duplicates: int) -> list[tuple[str, str]]:
        """(topic, text), with what can be compared at a glance."""
        count = max(1, self.prompts)
        roles = ", ".join(f"{role} {turns:,}" for role, turns in sorted(self.turns.items()))
        tools = f"; {self.tools:,} with tools" if self.tools else ""
        verifiers = ", ".join(
            f"{name} {number:,}{self._without_answer(name)}"
            for name, number in sorted(self.verifiers.items())
        )
        answered = self.answered.total()
        return [
            ("turns", f"{self.turns.total() / count:.1f} a prompt; {roles}{tools}"),
            ("tokens", f"{self.tokens:,}"),
            (
                "lengths",
                f"{self.tokens / count:.0f} tokens on average; {histogram(self.lengths, count)}",
            ),
            ("answers", f"{answered:,} prompts ({answered / count:.0%}) have a reference"),
            ("verifiers", verifiers),
            ("duplicates", f"{duplicates:,} ({duplicates / count:.2%})"),
        ]

    def _without_answer(self, verifier: str) -> str:
        missing = self.verifiers[verifier] - self.answered[verifier]
        return f" ({missing:,} without a reference)" if missing and verifier != "none" else ""
