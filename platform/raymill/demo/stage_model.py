"""Models of the pipeline's stages, and their answers to the held-out questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.data.demo.stdlib_conversations import ConversationEntry
from raymill.data.messages.encode import ChatEncoder
from raymill.evaluate.answers import POINTS, Verdict, verdict
from raymill.generate.load import text_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_TOKENS = 48
BATCH = 128


@dataclass(frozen=True)
class AnsweredQuestion:
    """A held-out question with a model's answer."""

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
        """Points that the reward rule gives to the answer."""
        return POINTS[self.verdict]


def question_of(entry: ConversationEntry) -> str:
    """Return the user's message."""
    return str(entry.record["messages"][0]["content"])


def reference_of(entry: ConversationEntry) -> str:
    """Return the expected answer."""
    return str(entry.record["messages"][1]["content"])


@dataclass(frozen=True)
class StageModel:
    """Exported model of a stage. `encoder`: its chat template; None for a base model, which continues text."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    encoder: ChatEncoder | None
    end_of_text_id: int

    @classmethod
    def load(cls, folder: Path) -> StageModel:
        """Load an exported folder from disk, without network."""
        from raymill.data.messages.folder import load_chat_encoder
        from raymill.generate.load import load_model

        model, tokenizer, end_of_text_id = load_model(folder)
        assert end_of_text_id is not None, f"{folder} names no end-of-text token"
        return cls(model, tokenizer, load_chat_encoder(folder), end_of_text_id)

    def answers(
        self, entries: Sequence[ConversationEntry], *, temperature: float = 0.0, seed: int = 0
    ) -> list[AnsweredQuestion]:
        """Answer each question once: greedily, or sampled at a temperature."""
        texts = self.complete(
            [self._prompt(question_of(entry)) for entry in entries],
            new_tokens=NEW_TOKENS,
            temperature=temperature,
            seed=seed,
        )
        # A base model doesn't stop after its answer, so only its first line counts.
        if self.encoder is None:
            texts = [text.strip().partition("\n")[0] for text in texts]
        return [
            AnsweredQuestion(entry, text.strip())
            for entry, text in zip(entries, texts, strict=True)
        ]

    def complete(
        self, prompts: Sequence[list[int]], *, new_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """Continue each prompt until the end of the turn or text; return the continuations."""
        from raymill.generate.batch import complete
        from raymill.generate.conversation import print_note

        stops = {self.end_of_text_id}
        if self.encoder is not None:
            stops |= self.encoder.stop_ids
        completions = complete(
            self.model,
            prompts,
            max_new_tokens=new_tokens,
            temperature=temperature,
            top_p=1.0,
            # There are fewer prompts than the factor, so two calls with different seeds never share a seed.
            seeds=[seed * 1_000_003 + number for number in range(len(prompts))],
            stop_ids=stops,
            batch_size=BATCH,
        )
        if cut := sum(completion.left_out > 0 for completion in completions):
            print_note(
                f"{cut} of {len(completions)} prompts are longer than the model's context and were cut"
            )
        return [
            self.tokenizer.decode([i for i in completion.ids if i not in stops])
            for completion in completions
        ]

    def text_prompt(self, text: str) -> list[int]:
        """Encode text as the beginning of a document."""
        return text_prompts(self.tokenizer).ids(text)

    def _prompt(self, question: str) -> list[int]:
        if self.encoder is None:
            return self.text_prompt(question + "\n")
        return self.encoder.prompt_ids([{"role": "user", "content": question}])
