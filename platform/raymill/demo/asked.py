"""Models of the stages, asked the held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymill.data.demo.stdlib_conversations import ConversationEntry
from raymill.data.messages.encode import ChatEncoder
from raymill.evaluate.answers import POINTS, Verdict, verdict
from raymill.generate.text import text_prompts

NEW_TOKENS = 48
BATCH = 128


@dataclass(frozen=True)
class Asked:
    """A held-out question, the expected answer and the one that came."""

    entry: ConversationEntry
    text: str

    @property
    def question(self) -> str:
        return question_of(self.entry)

    @property
    def reference(self) -> str:
        return reference_of(self.entry)

    @property
    def verdict(self) -> Verdict:
        return verdict(self.text, self.reference)

    @property
    def points(self) -> float:
        """What the rule pays."""
        return POINTS[self.verdict]


def question_of(entry: ConversationEntry) -> str:
    """What the user says."""
    return str(entry.record["messages"][0]["content"])


def reference_of(entry: ConversationEntry) -> str:
    """What the assistant should say."""
    return str(entry.record["messages"][1]["content"])


@dataclass(frozen=True)
class Speaker:
    """A stage's exported model. `encoder`: how it is spoken to; None: it continues text."""

    model: Any
    tokenizer: Any
    encoder: ChatEncoder | None
    end_of_text_id: int

    @classmethod
    def load(cls, folder: Path) -> Speaker:
        """From an exported folder, from the disk alone."""
        from raymill.data.messages.folder import load_chat_encoder
        from raymill.generate.load import load

        model, tokenizer, end_of_text_id = load(folder)
        assert end_of_text_id is not None, f"{folder} names no end of text"
        return cls(model, tokenizer, load_chat_encoder(folder), end_of_text_id)

    def answers(
        self, entries: Sequence[ConversationEntry], *, temperature: float = 0.0, seed: int = 0
    ) -> list[Asked]:
        """One answer to each question: greedy, or drawn at a temperature."""
        texts = self.complete(
            [self._prompt(question_of(entry)) for entry in entries],
            new_tokens=NEW_TOKENS,
            temperature=temperature,
            seed=seed,
        )
        if self.encoder is None:  # a base model goes on and on; its first line is its answer
            texts = [text.strip().partition("\n")[0] for text in texts]
        return [Asked(entry, text.strip()) for entry, text in zip(entries, texts, strict=True)]

    def complete(
        self, prompts: Sequence[list[int]], *, new_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """What the model writes after each prompt, until it ends its turn or its text."""
        from raymill.generate.batch import complete
        from raymill.generate.conversation import print_note

        stops = {self.end_of_text_id}
        if self.encoder is not None:
            stops |= self.encoder.stop_ids
        found = complete(
            self.model,
            prompts,
            max_new_tokens=new_tokens,
            temperature=temperature,
            top_p=1.0,
            seeds=[seed * 1_000_003 + number for number in range(len(prompts))],
            stop_ids=stops,
            batch_size=BATCH,
            pad_id=self.end_of_text_id,
        )
        if cut := sum(one.left_out > 0 for one in found):
            print_note(f"the model hasn't the positions to see {cut} of {len(found)} prompts whole")
        return [self.tokenizer.decode([i for i in one.ids if i not in stops]) for one in found]

    def text_prompt(self, text: str) -> list[int]:
        """Text as a document begins."""
        return text_prompts(self.tokenizer).ids(text)

    def _prompt(self, question: str) -> list[int]:
        if self.encoder is None:
            return self.text_prompt(question + "\n")
        return self.encoder.prompt_ids([{"role": "user", "content": question}])
