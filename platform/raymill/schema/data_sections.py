"""Sections about data: text, conversations, pairs, prompts, and their tokenizer.

As in `sections.py`, defaults and explanations of the keys stand in `conf/`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymill.schema.corpus_sections import DecontaminationConfig, DeduplicationConfig
from raymill.schema.extraction_section import ExtractionConfig

Thinking = Literal["learn", "mask", "drop"]


@dataclass(frozen=True)
class ValidationConfig:
    """Origin of the held-out set. Groups (modules, files) are held out by a hash of their names."""

    fraction: float
    group_column: str | None
    path: tuple[str, ...] | None


@dataclass(frozen=True)
class RowsConfig:
    """Common part of all data: the place it is read from, and the rows of tokens it becomes.

    A row has `sequence_length` predictions, and so one token more.
    """

    name: str
    path: tuple[str, ...] | None
    sequence_length: int
    row_group_rows: int
    window_row_groups: int
    shard_input_bytes: int
    max_bad_fraction: float
    validation: ValidationConfig
    mixture: dict[str, float]
    mixture_changes: dict[str, dict[str, float]]
    max_epochs: dict[str, float]

    @property
    def row_predictions(self) -> int:
        """Predictions a row has space for."""
        return self.sequence_length


@dataclass(frozen=True, kw_only=True)
class DataConfig(RowsConfig):
    """Raw text, which becomes packed rows of tokens.

    `sources` maps the names of sources to their entries (see `data/sources/declared.py`), in order of priority;
    `cleaning` maps the names of cleaning steps to their parameters, in the order in which they are applied.
    """

    source: Literal["stdlib", "demo", "files"]
    sources: dict[str, dict[str, object]]
    text_column: str
    url_column: str
    language_column: str
    shuffle_documents: bool
    packing: Literal["concatenate", "best_fit"]
    document_mask: bool
    extraction: ExtractionConfig
    corpus: str | None
    cleaning: dict[str, dict[str, object]]
    deduplication: DeduplicationConfig
    decontamination: DecontaminationConfig
    takedown: tuple[str, ...] | None
    keep_rejects: float

    @property
    def has_corpus(self) -> bool:
        """Tell whether documents pass the stages of a corpus before they are tokenized."""
        changed = self.deduplication.is_on or self.decontamination.path is not None
        return bool(self.cleaning) or changed or self.takedown is not None


@dataclass(frozen=True, kw_only=True)
class MessagesConfig(RowsConfig):
    """Data made of messages, which a chat template renders."""

    template: str
    special_tokens: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ChatConfig(MessagesConfig):
    """Conversations, which become packed rows with a mask of the tokens to learn from."""

    source: Literal["stdlib_chat", "demo_chat", "chat"]
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion"]
    train_on: Literal["all", "last"]
    thinking: Thinking
    overlong: Literal["cut", "refuse"]
    packing: bool
    pack_window: int
    questions: int


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(MessagesConfig):
    """Compared answers, which become rows of pairs: the better one, then the worse.

    `sequence_length` counts one answer with its prompt; a row holds two of them.
    """

    source: Literal["preference"]
    format: Literal["auto", "pairs", "hh", "rankings"]
    thinking: Thinking

    @property
    def row_predictions(self) -> int:
        return 2 * self.sequence_length + 1


@dataclass(frozen=True, kw_only=True)
class PromptsConfig(MessagesConfig):
    """Prompts of reinforcement learning, with the references that a verifier needs."""

    source: Literal["stdlib_prompts", "demo_prompts", "prompts"]
    verifier: str


@dataclass(frozen=True)
class TokenizerConfig:
    """Byte-level BPE to train, or an existing tokenizer to load."""

    name: str
    path: str | None
    vocab_size: int
    train_bytes: int
    end_of_text: str
    pattern: str | None
    engine: Literal["auto", "tiktoken", "gigatoken", "huggingface"]
