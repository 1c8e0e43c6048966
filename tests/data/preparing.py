"""A job's preparation, whatever its kind of messages: made, found, described."""

from __future__ import annotations

from raymill.cluster.preparation import kind_of
from raymill.config.schema import MessagesPrepareJob
from raymill.data.chat.tokenizer import ChatTokenizer
from raymill.data.manifest import Prepared


def prepare(
    made: MessagesPrepareJob, tokenizer: ChatTokenizer, *, tasks: int | None = None
) -> Prepared:
    return kind_of(made.data).preparation(made, tokenizer).run(tasks)


def describe(made: MessagesPrepareJob, tokenizer: ChatTokenizer) -> str:
    return kind_of(made.data).preparation(made, tokenizer).describe()


def find_prepared(made: MessagesPrepareJob, tokenizer: ChatTokenizer) -> Prepared | None:
    return kind_of(made.data).preparation(made, tokenizer).find()
