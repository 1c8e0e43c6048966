"""Held-out questions and their answers, stored next to the shards, so that answers can be generated and scored.

Training questions are listed too, as text, for baselines that must be fitted.
"""

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
TRAINING_QUESTIONS = 4000  # listed, as text alone


@dataclass(frozen=True)
class Question:
    """The last question of a conversation and its answer.

    `prompt_ids` are the tokens before the answer, as the model is prompted; `answer_ids` don't include the
    end of the turn. Training questions have no ids.
    """

    split: str
    rank: float  # a hash of the conversation: the questions of the lowest ranks are kept
    question: str
    reference: str
    prompt_ids: tuple[int, ...] = ()
    answer_ids: tuple[int, ...] = ()


def question_of(
    conversation: Conversation, chat: EncodedChat, end_of_turn_id: int, split: str, seed: int
) -> Question | None:
    """Return the conversation's last question, or None if it doesn't end with a question and a text answer.

    `chat` is encoded with every learned turn marked.
    """
    *before, answer = conversation.messages
    if not before or before[-1]["role"] != "user" or answer.get("tool_calls"):
        return None
    question, reference = before[-1]["content"], answer["content"]
    rank = hash_fraction(canonical_json([list(conversation.messages), split]), seed)
    if split == TRAIN:
        return Question(split, rank, question, reference)
    # The answer is the last run of neighboring positions that the assistant wrote.
    positions = chat.by_assistant.nonzero()[0].tolist()
    start = len(positions) - 1
    while start > 0 and positions[start - 1] == positions[start] - 1:
        start -= 1
    ids = chat.ids.tolist()
    answer_ids = ids[positions[start] : positions[-1] + 1]
    if answer_ids[-1] == end_of_turn_id:
        answer_ids = answer_ids[:-1]
    prompt_ids = tuple(ids[: positions[start]])
    return Question(split, rank, question, reference, prompt_ids, tuple(answer_ids))


def lowest(questions: Iterable[Question], held_out: int) -> list[Question]:
    """Return at most `held_out` held-out questions and TRAINING_QUESTIONS others, those of the lowest ranks."""
    kept = []
    ordered = sorted(questions, key=lambda question: (question.rank, question.question))
    for split, count in ((VALIDATION, held_out), (TRAIN, TRAINING_QUESTIONS)):
        kept += [question for question in ordered if question.split == split][:count]
    return kept


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Write one JSON line per question."""
    write_atomic(path, "".join(canonical_json(asdict(question)) + "\n" for question in questions))


def read_questions(path: Path) -> Iterator[Question]:
    """Read a file that `write_questions` wrote.

    Raises:
        DataError: the file holds something else.
        StorageError: it can't be read.
    """
    try:
        # Unlike splitlines(), split doesn't cut at U+2028 and the like, which JSON doesn't escape.
        for line in read_text(path).split("\n"):
            if not line:
                continue
            stored = json.loads(line)
            stored["prompt_ids"] = tuple(stored["prompt_ids"])
            stored["answer_ids"] = tuple(stored["answer_ids"])
            yield Question(**stored)
    except (*MISSING, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} can't be read as questions: {error}") from error
