"""`jobs/prepare.py` on the driver: text, or conversations for a parent model."""

from __future__ import annotations

from pathlib import Path

from raymill.cluster.session import connect
from raymill.config.schema import ChatPrepareJob, PrepareJob
from raymill.data import prepare as text
from raymill.data.chat.prepare import describe, find_prepared, prepare
from raymill.data.chat.report import preview
from raymill.data.chat.tokenizer import ChatTokenizer, chat_tokenizer
from raymill.data.manifest import Prepared
from raymill.track.registry import resolve_model


def run(job: PrepareJob | ChatPrepareJob) -> int:
    """Prepare a job's data; returns the process's exit code.

    Raises:
        RaymillError: the parent can't be had, or the input is missing or too bad.
    """
    if isinstance(job, ChatPrepareJob):
        return _run_chat(job)
    if job.dry_run:
        print(text.describe(job))
    else:
        text.run(job)
    return 0


def _run_chat(job: ChatPrepareJob) -> int:
    parent = resolve_model(job.parent, job.tracking, Path(job.storage.root), key="parent").folder
    tokenizer = chat_tokenizer(parent, job.data.template, job.data.special_tokens)
    if job.dry_run:
        print(describe(job, tokenizer))
        return 0
    prepared = prepared_chat(job, tokenizer)
    if job.preview:
        preview(prepared, job.preview)
    return 0


def prepared_chat(job: ChatPrepareJob, tokenizer: ChatTokenizer) -> Prepared:
    """The prepared folder: found, or made now on a Ray that is started for it or is there already."""
    found = find_prepared(job, tokenizer)
    if found is not None:
        return found
    with connect(job.cluster, workers=0):
        return prepare(job, tokenizer)
