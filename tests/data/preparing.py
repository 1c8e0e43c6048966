"""A job's preparation, whatever its kind of messages: made, found, described."""

from __future__ import annotations

from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.store.manifest import PreparedData
from raymill.driver.preparation import kind_of
from raymill.schema.jobs import MessagesPrepareJob


def prepare(
    made: MessagesPrepareJob, tokenizer: ChatTokenizer, *, tasks: int | None = None
) -> PreparedData:
    return kind_of(made.data).preparation(made, tokenizer).run(tasks)


def describe(made: MessagesPrepareJob, tokenizer: ChatTokenizer) -> str:
    return kind_of(made.data).preparation(made, tokenizer).describe()


def find_prepared(made: MessagesPrepareJob, tokenizer: ChatTokenizer) -> PreparedData | None:
    return kind_of(made.data).preparation(made, tokenizer).find()
