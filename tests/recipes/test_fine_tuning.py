"""Checks of a fine-tuning run before its first step, and its scores of answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.chat_factory import write_parent
from engine.chat_probe import NEW_IDS, VOCAB
from raymill.data.chat.questions import Question
from raymill.data.text.control_tokens import ControlTokens
from raymill.engine.answers import AnsweredQuestions
from raymill.engine.evaluation import EvalPoint
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.model.parent import load_parent
from raymill.objective.language_modeling import AssistantTokens
from raymill.schema.sections import ChatEvaluation
from sections import plain


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return load_parent(write_parent(tmp_path / "parent"), VOCAB, NEW_IDS, "sdpa", 7)


class FakeJournal(EventLog):
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        self.events.append({"kind": kind, "step": step, **values})


def answered(model: Any, folder: Path, count: int, event_log: FakeJournal) -> AnsweredQuestions:
    """Asked without a prepared folder: questions are given directly."""
    from raymill.data.store.facts import ChatFacts

    class Prepared:
        tokenizer_folder = folder / "parent"

        class manifest:  # noqa: N801
            sequence_length = 40
            chat = ChatFacts("", 258, 0, 0, 1.0, "", "", {})

            class tokenizer:  # noqa: N801
                end_of_text_id = 0

    asked = AnsweredQuestions(
        prepared=Prepared(),  # type: ignore[arg-type]
        settings=plain(ChatEvaluation, answer_tokens=6, refusal_phrase="No"),
        objective=AssistantTokens(model.get_output_embeddings()),
        run_dir=folder,
        seed=1,
        parent_chats=True,
        tokens=ControlTokens(None, 0, (258, 0)),
        lockstep=False,
        event_log=event_log,
    )
    questions = [
        Question(
            "validation", 0.1 * i, f"q{i}", "No" if i % 2 else "Yes", (257, 5 + i, 258), (9, 9 + i)
        )
        for i in range(count)
    ]
    object.__setattr__(asked, "_questions", questions)
    return asked


def test_a_run_resumed_with_more_questions_still_writes_its_table(
    model: Any, tmp_path: Path
) -> None:
    event_log = FakeJournal()
    group = WorkerGroup(torch.device("cpu"))
    first = answered(model, tmp_path, 2, event_log)
    figures = first.measure(model, group, EvalPoint(0, first=True, last=False))
    assert {"answers/loss", "answers/loss_other_question", "answers/refusal_f1"} <= figures.keys()
    more = answered(model, tmp_path, 4, event_log)
    more.measure(model, group, EvalPoint(9, first=False, last=True))
    table = json.loads((tmp_path / "samples" / "answers-00000009.json").read_text())
    parents = [row[2] for row in table["data"]]
    assert parents[2:] == ["", ""], "the parent was never asked these"
    assert [event["kind"] for event in event_log.events] == ["answers", "answers"]


def test_the_loss_of_answers_is_what_transformers_says(model: Any, tmp_path: Path) -> None:
    asked = answered(model, tmp_path, 3, FakeJournal())
    figures = asked.measure(model, WorkerGroup(torch.device("cpu")), EvalPoint(0, True, False))
    nats, count = 0.0, 0
    for question in asked._questions:
        ids = torch.tensor([[*question.prompt_ids, *question.answer_ids]])
        labels = ids.clone()
        labels[0, : len(question.prompt_ids)] = -100
        with torch.no_grad():
            nats += model(input_ids=ids, labels=labels).loss.item() * len(question.answer_ids)
        count += len(question.answer_ids)
    assert figures["answers/loss"] == pytest.approx(nats / count, rel=1e-5)


def test_questions_that_lose_their_beginning_are_counted_and_told_once(
    model: Any, tmp_path: Path
) -> None:
    event_log = FakeJournal()
    asked = answered(model, tmp_path, 3, event_log)
    positions = model.config.max_position_embeddings
    long = tuple(1 + i % 200 for i in range(positions))  # which leaves no room for six more tokens
    asked._questions[1] = replace(
        asked._questions[1], prompt_ids=(257, *long[:30], 258), answer_ids=(9,) * 3
    )
    asked._questions[2] = replace(asked._questions[2], prompt_ids=long, answer_ids=())
    group = WorkerGroup(torch.device("cpu"))
    figures = asked.measure(model, group, EvalPoint(0, first=True, last=False))
    # A row has 41 places: the third question stands before the first's answer, the second before none.
    assert figures["answers/other_questions_cut"] == 1
    assert figures["answers/questions_cut"] == 1
    asked.measure(model, group, EvalPoint(5, first=False, last=True))
    told = [event["text"] for event in event_log.events if event["kind"] == "message"]
    assert told == [
        "1 of 3 held-out questions lose their beginning: they don't fit into a row of 41 tokens together with "
        "another question's answer",
        "1 of 3 held-out questions lose their beginning: they don't fit into the model's positions together "
        "with evaluation.answer_tokens=6",
    ]
