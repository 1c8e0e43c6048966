"""The registry of the kinds of data made of messages, by their configuration."""

from __future__ import annotations

from typing import Any, TypeVar

from raymill.data.chat.kind import ChatKind
from raymill.data.messages.kind import MessageKind
from raymill.data.messages.prepare import Preparation
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.preference.kind import PreferenceKind
from raymill.data.prompts.kind import PromptKind
from raymill.schema.data_sections import (
    ChatConfig,
    MessagesConfig,
    PreferenceConfig,
    PromptsConfig,
)
from raymill.schema.jobs import MessagesPrepareJob

C = TypeVar("C", bound=MessagesConfig)

# A kind with columns that no other has also lists them in `store.rows`.
KINDS: dict[type[MessagesConfig], MessageKind[Any, Any]] = {
    ChatConfig: ChatKind(),
    PreferenceConfig: PreferenceKind(),
    PromptsConfig: PromptKind(),
}


def kind_of(data: C) -> MessageKind[C, Any]:
    """Return the kind of data that a configuration describes."""
    return KINDS[type(data)]


def preparation_of(job: MessagesPrepareJob, tokenizer: ChatTokenizer) -> Preparation[Any, Any]:
    """Return the preparation of a job's data."""
    return Preparation(kind_of(job.data), job.data, tokenizer, job.seed, job.storage.folder)
