"""`jobs/prepare.py` on the driver: text, or messages of some kind for a parent model."""

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
from raymill.data.store.manifest import MANIFEST_NAME, Prepared
from raymill.data.text import prepare as text
from raymill.schema.jobs import (
    ChatConfig,
    MessagesConfig,
    MessagesPrepareJob,
    PreferenceConfig,
    PrepareJob,
    PromptsConfig,
    RowsConfig,
    StorageConfig,
)
from raymill.storage.mirror import fetch, keep
from raymill.track.registry import resolve_model


@dataclass(frozen=True)
class Kind:
    """How data of one kind is prepared."""

    name: str  # as in `prepare kind=` and in a manifest
    what: str
    preparation: Callable[[Any, ChatTokenizer], Preparation]
    preview: Callable[[Prepared, int], None]


_KINDS: dict[type[MessagesConfig], Kind] = {
    ChatConfig: Kind("chat", "conversations", chat.preparation, preview_chat),
    PreferenceConfig: Kind(
        "preference", "compared answers", preference.preparation, preview_preference
    ),
    PromptsConfig: Kind("prompts", "prompts", prompts.preparation, preview_prompts),
}


def kind_of(data: MessagesConfig) -> Kind:
    """How this data is prepared."""
    return _KINDS[type(data)]


def run(job: PrepareJob | MessagesPrepareJob) -> int:
    """Prepare a job's data; returns the process's exit code.

    Raises:
        RaymillError: the parent can't be had, or the input is missing or too bad.
    """
    if isinstance(job, MessagesPrepareJob):
        return _run_messages(job)
    if job.dry_run:
        print(text.describe(job))
    else:
        text.run(job)
    return 0


def _run_messages(job: MessagesPrepareJob) -> int:
    parent = resolve_model(job.parent, job.tracking, job.storage.folder, key="parent").folder
    tokenizer = chat_tokenizer(parent, job.data.template, job.data.special_tokens)
    if job.dry_run:
        print(kind_of(job.data).preparation(job, tokenizer).describe())
        return 0
    prepared = prepared_messages(job, tokenizer)
    if job.preview:
        kind_of(job.data).preview(prepared, job.preview)
    return 0


def prepared_messages(job: MessagesPrepareJob, tokenizer: ChatTokenizer) -> Prepared:
    """The prepared folder: found, or made now on a Ray that is started for it or is there already."""
    preparation = kind_of(job.data).preparation(job, tokenizer)
    fetch(job.storage, preparation.folder, MANIFEST_NAME)
    prepared = preparation.find()
    if prepared is None:
        with connect(job.cluster):
            prepared = preparation.run()
    keep(job.storage, preparation.folder, MANIFEST_NAME)
    return prepared


def fetched_mixture(data: RowsConfig, storage: StorageConfig) -> dict[Path, float]:
    """Prepared folder → weight of `data.mixture`, here if an object store has them."""
    folders = mixture_folders(data, storage.folder)
    for folder in folders:
        fetch(storage, folder, MANIFEST_NAME)
    return folders
