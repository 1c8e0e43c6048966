"""Held-out questions and their answers, kept beside the shards, so that answers can be generated and
scored. Training questions are listed too, as text, for yardsticks that must be fitted on something."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from raymill.data.messages.conversation import Conversation
from raymill.data.messages.encode import EncodedChat
from raymill.data.store.split import TRAIN, VALIDATION, hash_fraction
from raymill.durable import canonical_json, write_atomic
from raymill.errors import DataError
from raymill.reading import MISSING, read_text

QUESTIONS_NAME = "questions.jsonl"
TRAINING_QUESTIONS = 4000  # listed as text


@dataclass(frozen=True)
class Question:
    """The last turn of a conversation. `prompt_ids` is everything before the answer, as the model is
    asked; `answer_ids` is without the end of turn. Training questions carry no ids."""

    split: str
    rank: float  # by hash: the questions that are kept are those of the lowest ranks
    question: str
    reference: str
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()


def question_of(
    conversation: Conversation, chat: EncodedChat, end_of_turn_id: int, split: str, seed: int
) -> Question | None:
    """The conversation's last question; None if its answer is no text or not the last that is said.

    `chat` is encoded with every learned turn marked.
    """
    *before, answer = conversation.messages
    if not before or before[-1]["role"] != "user" or answer.get("tool_calls"):
        return None
    asked, reference = before[-1]["content"], answer["content"]
    rank = hash_fraction(canonical_json([list(conversation.messages), split]), seed)
    if split == TRAIN:
        return Question(split, rank, asked, reference)
    places = chat.spoken.nonzero()[0].tolist()
    start = len(places) - 1
    while start > 0 and places[start - 1] == places[start] - 1:
        start -= 1
    ids = chat.ids.tolist()
    answer_ids = ids[places[start] : places[-1] + 1]
    if answer_ids[-1] == end_of_turn_id:
        answer_ids = answer_ids[:-1]
    return Question(split, rank, asked, reference, tuple(ids[: places[start]]), tuple(answer_ids))


def lowest(questions: Iterable[Question], held_out: int) -> list[Question]:
    """At most `held_out` held-out questions and TRAINING_QUESTIONS others, those of lowest rank."""
    kept = []
    ordered = sorted(questions, key=lambda question: (question.rank, question.question))
    for split, count in ((VALIDATION, held_out), (TRAIN, TRAINING_QUESTIONS)):
        kept += [question for question in ordered if question.split == split][:count]
    return kept


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """One JSON line a question."""
    write_atomic(path, "".join(canonical_json(asdict(question)) + "\n" for question in questions))


def read_questions(path: Path) -> Iterator[Question]:
    """What `write_questions` wrote.

    Raises:
        DataError: the file isn't that.
        StorageError: it can't be read.
    """
    try:
        # Not splitlines(): it also cuts at U+2028 and the like, which JSON leaves as they are.
        for line in read_text(path).split("\n"):
            if not line:
                continue
            stored = json.loads(line)
            stored["prompt_ids"] = tuple(stored["prompt_ids"])
            stored["answer_ids"] = tuple(stored["answer_ids"])
            yield Question(**stored)
    except (*MISSING, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} can't be read as questions: {error}") from error
