"""A job's preparation, whatever its kind of messages: made, found, described."""

from __future__ import annotations

from raymill.data.kinds import preparation_of
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.store.manifest import PreparedData
from raymill.schema.jobs import MessagesPrepareJob


def prepare(
    made: MessagesPrepareJob, tokenizer: ChatTokenizer, *, tasks: int | None = None
) -> PreparedData:
    return preparation_of(made, tokenizer).run(tasks)


def describe(made: MessagesPrepareJob, tokenizer: ChatTokenizer) -> str:
    return preparation_of(made, tokenizer).describe()


def find_prepared(made: MessagesPrepareJob, tokenizer: ChatTokenizer) -> PreparedData | None:
    return preparation_of(made, tokenizer).find()
