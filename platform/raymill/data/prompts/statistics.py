"""What a set of prompts is like: counts that add up over units, and how they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raymill.data.prompts.prompt import Prompt


@dataclass
class Statistics:
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
        self.lengths[str(1 << max(0, tokens - 1).bit_length())] += 1
        self.turns.update(message["role"] for message in prompt.messages)
        self.tools += prompt.tools is not None
        verifier = prompt.verifier or "none"
        self.verifiers[verifier] += 1
        self.answered[verifier] += prompt.answer is not None

    def to_json(self) -> dict[str, Any]:
        """As a unit hands it on."""
        return {
            name: dict(sorted(value.items())) if isinstance(value, Counter) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, Any]]) -> Statistics:
        """The sum of several units' counts."""
        total = cls()
        for part in parts:
            for name, value in part.items():
                if isinstance(value, Mapping):
                    getattr(total, name).update(value)
                else:
                    setattr(total, name, getattr(total, name) + value)
        return total

    def lines(self, duplicates: int) -> list[tuple[str, str]]:
        """(topic, text), with what can be compared at a glance."""
        count = max(1, self.prompts)
        histogram = ", ".join(
            f"≤{bound}: {self.lengths[bound] / count:.0%}"
            for bound in sorted(self.lengths, key=int)
        )
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
            ("lengths", f"{self.tokens / count:.0f} tokens on average; {histogram}"),
            ("answers", f"{answered:,} prompts ({answered / count:.0%}) have a reference"),
            ("verifiers", verifiers),
            ("duplicates", f"{duplicates:,} ({duplicates / count:.2%})"),
        ]

    def _without_answer(self, verifier: str) -> str:
        missing = self.verifiers[verifier] - self.answered[verifier]
        return f" ({missing:,} without a reference)" if missing and verifier != "none" else ""
