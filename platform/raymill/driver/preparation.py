"""Preparation of data on the driver: text, or messages for a parent model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymill.cluster.session import connect
from raymill.data.chat import prepare as chat
from raymill.data.chat.report import preview as preview_chat
from raymill.data.messages.prepare import Preparation
from raymill.data.messages.tokenizer import ChatTokenizer, chat_tokenizer
from raymill.data.preference import prepare as preference
from raymill.data.preference.report import preview as preview_preference
from raymill.data.prompts import prepare as prompts
from raymill.data.prompts.report import preview as preview_prompts
from raymill.data.store.location import mixture_folders
from raymill.data.store.manifest import MANIFEST_NAME, PreparedData
from raymill.data.text import prepare as text
from raymill.schema.data_sections import (
    ChatConfig,
    MessagesConfig,
    PreferenceConfig,
    PromptsConfig,
    RowsConfig,
)
from raymill.schema.jobs import MessagesPrepareJob, PrepareJob
from raymill.schema.storage import StorageConfig
from raymill.storage.mirror import download_folder, upload_folder
from raymill.track.registry import resolve_model


@dataclass(frozen=True)
class Kind:
    """Preparation and preview of messages of one kind."""

    name: str  # as in `prepare kind=` and in a manifest
    what: str  # plural noun for messages
    preparation: Callable[[Any, ChatTokenizer], Preparation]
    preview: Callable[[PreparedData, int], None]


_KINDS: dict[type[MessagesConfig], Kind] = {
    ChatConfig: Kind("chat", "conversations", chat.preparation, preview_chat),
    PreferenceConfig: Kind(
        "preference", "compared answers", preference.preparation, preview_preference
    ),
    PromptsConfig: Kind("prompts", "prompts", prompts.preparation, preview_prompts),
}


def kind_of(data: MessagesConfig) -> Kind:
    """Return the kind of messages that a configuration describes."""
    return _KINDS[type(data)]


def describe_preparation(job: PrepareJob | MessagesPrepareJob) -> str:
    """Describe the data that a job would prepare; nothing is started or written.

    Raises:
        RaymillError: the parent can't be loaded, or the input is missing.
    """
    if isinstance(job, PrepareJob):
        return text.describe(job)
    return kind_of(job.data).preparation(job, _tokenizer(job)).describe()


def prepare(job: PrepareJob | MessagesPrepareJob) -> None:
    """Prepare a job's data, and show the first of it where that is asked for.

    Raises:
        RaymillError: the parent can't be loaded, or the input is missing or too bad.
    """
    if isinstance(job, PrepareJob):
        text.run(job)
        return
    prepared = prepared_messages(job, _tokenizer(job))
    if job.preview:
        kind_of(job.data).preview(prepared, job.preview)


def _tokenizer(job: MessagesPrepareJob) -> ChatTokenizer:
    parent = resolve_model(job.parent, job.tracking, job.storage.folder, key="parent").folder
    return chat_tokenizer(parent, job.data.template, job.data.special_tokens)


def prepared_messages(job: MessagesPrepareJob, tokenizer: ChatTokenizer) -> PreparedData:
    """Return the prepared folder, made now unless it exists. Ray is started for it unless it runs already."""
    preparation = kind_of(job.data).preparation(job, tokenizer)
    download_folder(job.storage, preparation.folder, MANIFEST_NAME)
    # Ray is only started where there is something to prepare.
    prepared = preparation.find()
    if prepared is None:
        with connect(job.cluster):
            prepared = preparation.run()
    # Also where it was found: an earlier upload may have failed.
    upload_folder(job.storage, preparation.folder, MANIFEST_NAME)
    return prepared


def fetched_mixture(data: RowsConfig, storage: StorageConfig) -> dict[Path, float]:
    """Return prepared folder → weight of `data.mixture`, downloaded if an object store has them."""
    folders = mixture_folders(data, storage.folder)
    for folder in folders:
        download_folder(storage, folder, MANIFEST_NAME)
    return folders
