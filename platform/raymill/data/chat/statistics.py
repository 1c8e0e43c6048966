"""What a set of conversations is like: counts that add up over units, and how they read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from raymill.data.messages.conversation import Conversation
from raymill.data.text.counters import Counters, histogram, length_class


@dataclass
class Statistics(Counters):
    """Sums over conversations; histograms are by the power of two that is at least the length."""

    conversations: int = 0
    turns: Counter[str] = field(default_factory=Counter)  # messages by role
    characters: Counter[str] = field(default_factory=Counter)  # of content, by role
    tokens: int = 0  # of whole conversations
    learned: int = 0
    lengths: Counter[str] = field(default_factory=Counter)  # conversations by tokens
    cut: int = 0  # conversations whose last turns were left off
    weighted: int = 0  # conversations with a weight other than 1

    def add(self, conversation: Conversation, tokens: int, learned: int, cut: bool) -> None:
        """Count one conversation."""
        self.conversations += 1
        for message in conversation.messages:
            self.turns[message["role"]] += 1
            self.characters[message["role"]] += len(message["content"])
        self.tokens += tokens
        self.learned += learned
        self.lengths[length_class(tokens)] += 1
        self.cut += cut
        self.weighted += conversation.weight != 1.0

    def lines(self, duplicates: int) -> list[tuple[str, str]]:
        """(topic, text), with what can be compared at a glance."""
        count = max(1, self.conversations)
        characters = max(1, sum(self.characters.values()))
        roles = ", ".join(
            f"{role} {turns:,} ({self.characters[role] / characters:.0%} of the text)"
            for role, turns in sorted(self.turns.items())
        )
        learned = self.learned / max(1, self.tokens)
        return [
            ("turns", f"{sum(self.turns.values()) / count:.1f} a conversation; {roles}"),
            ("tokens", f"{self.tokens:,}, of which learned {self.learned:,} ({learned:.0%})"),
            (
                "lengths",
                f"{self.tokens / count:.0f} tokens on average; {histogram(self.lengths, count)}",
            ),
            ("cut", f"{self.cut:,} conversations ({self.cut / count:.2%}) lost turns at the end"),
            ("duplicates", f"{duplicates:,} ({duplicates / count:.2%})"),
        ]
