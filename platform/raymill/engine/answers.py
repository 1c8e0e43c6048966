"""Held-out questions: what their answers cost the model, and what it answers itself.

Legend: Q questions, T tokens of the longest with its answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raymill.data.chat.questions import Question, read_questions
from raymill.data.store.manifest import PreparedData, read_tokenizer
from raymill.data.store.rows import Rows
from raymill.data.store.split import VALIDATION
from raymill.data.text.control_tokens import ControlTokens
from raymill.data.text.text_prompts import TextPrompts
from raymill.durable import write_atomic
from raymill.engine.agreement import on_all_ranks
from raymill.engine.answer_table import write_table
from raymill.engine.compilation import uncompiled
from raymill.engine.evaluation import EvalPoint, evaluating
from raymill.engine.event_log import EventLog
from raymill.engine.group import WorkerGroup
from raymill.evaluate.answers import Answer, score
from raymill.evaluate.reasoning import PROMPT_END, opens_reasoning
from raymill.generate.batch import complete
from raymill.objective.language_modeling import AssistantTokens
from raymill.reading import read_json
from raymill.schema.sections import ChatEvaluation

COLUMNS = ("question", "reference", "parent", "answer")
PARENT_NAME = "samples/parent-answers.json"


@dataclass(frozen=True)
class AnsweredQuestions:
    """Loss of the right answers (without the end of turn) after their own question and after another's,
    and scores of generated answers. Before the first step the model is the parent: a parent that knows no
    chat template is then asked in plain text, as it was trained.
    """

    prepared: PreparedData
    settings: ChatEvaluation
    objective: AssistantTokens
    run_dir: Path
    seed: int
    parent_chats: bool
    tokens: ControlTokens
    lockstep: bool  # ranks gather weights together
    event_log: EventLog | None

    def measure(self, model: Any, group: WorkerGroup, eval_point: EvalPoint) -> dict[str, float]:
        """See `Evaluator`."""
        if not (eval_point.first or eval_point.due(self.settings.answer_every)):
            return {}
        on_all_ranks(group, lambda: self._plain)  # read by all before any of them begins
        if not self._asked:
            return {}
        own = [(question.prompt_ids, question.answer_ids) for question in self._asked]
        # The questions stand in the order of a hash: the next one is any other.
        # Its prompt loses its beginning where both together would be longer than a row.
        room = self.prepared.manifest.sequence_length + 1
        other = [
            (own[place - 1][0][-max(1, room - len(answer)) :], answer)
            for place, (_, answer) in enumerate(own)
        ]
        cut = sum(len(ids) < len(own[place - 1][0]) for place, (ids, _) in enumerate(other))
        figures = {
            "answers/loss": self._loss(model, group, own),
            "answers/loss_other_question": self._loss(model, group, other),
            **self._cut(
                eval_point, cut, "other_questions_cut", f"of {room} tokens, before another's answer"
            ),
        }
        plainly = eval_point.first and not self.parent_chats
        if plainly:
            asked = [(plain, question.answer_ids) for plain, question in self._plain]
            figures["answers/loss_plain"] = self._loss(model, group, asked)
        with uncompiled():
            answers, cut = self._answers(model, group, plainly)
        beside = f"evaluation.answer_tokens={self.settings.answer_tokens}"
        figures |= self._cut(
            eval_point, cut, "questions_cut", f"of the model's positions, beside {beside}"
        )
        figures |= score(answers, self.settings.refusal_phrase).metrics("answers")
        if self.event_log is not None:
            self._write(self.event_log, answers, eval_point)
        return figures

    def _loss(
        self, model: Any, group: WorkerGroup, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> float:
        """Nats per token of the answers, each after its prompt; collective."""
        nats = weight = 0.0
        size, world = self.settings.batch, group.world_size
        with evaluating(model):
            for first in range(0, len(pairs), size * world):
                mine = pairs[first + group.rank * size : first + (group.rank + 1) * size]
                rows = _rows(mine, max(len(p) + len(a) for p, a in pairs))
                nats += float(self.objective.losses(model, rows, group.device).double().sum())
                weight += self.objective.weight(rows)
        nats, weight = group.sum(nats, weight)
        return nats / weight

    def _cut(self, eval_point: EvalPoint, count: int, name: str, room: str) -> dict[str, float]:
        """The figure of how many questions lose their beginning, where some do; in words the first time."""
        if not count:
            return {}
        if self.event_log is not None and name not in self._told:
            self._told.add(name)
            lost = f"{count} of {len(self._asked)} held-out questions lose their beginning"
            text = f"{lost}: they are longer than the room {room}"
            self.event_log.write("message", eval_point.step, text=text)
        return {f"answers/{name}": float(count)}

    def _answers(self, model: Any, group: WorkerGroup, plainly: bool) -> tuple[list[Answer], int]:
        """Greedy answers to all questions, on every rank, and how many of these weren't seen whole.
        Collective."""
        prompts = [plain if plainly else question.prompt_ids for plain, question in self._plain]
        share = -(-len(prompts) // group.world_size)
        places = [p % len(prompts) for p in range(group.rank * share, (group.rank + 1) * share)]
        stops = {*self.tokens.stops}
        found = complete(
            model,
            [prompts[place] for place in places],
            max_new_tokens=self.settings.answer_tokens,
            temperature=0.0,
            top_p=1.0,
            seeds=[self.seed] * len(places),
            stop_ids=stops,
            batch_size=4 * self.settings.batch,
            pad_id=self.tokens.padding,
            lockstep=self.lockstep,
        )
        texts = self._tokenizer.decode_batch(
            [[i for i in one.ids if i not in stops] for one in found], skip_special_tokens=False
        )
        mine = [
            (text.strip(), one.finish == "stop", one.left_out > 0)
            for text, one in zip(texts, found, strict=True)
        ]
        # The last ranks answer the first questions once more.
        gathered = [one for part in group.gather(mine) for one in part][: len(prompts)]
        ends = self._tokenizer.decode_batch(
            [prompt[-PROMPT_END:] for prompt in prompts], skip_special_tokens=False
        )
        answers = [
            Answer(question.question, question.reference, text, ended, opens_reasoning(end))
            for question, end, (text, ended, _) in zip(self._asked, ends, gathered, strict=True)
        ]
        return answers, sum(cut for _, _, cut in gathered)

    def _write(self, event_log: EventLog, answers: Sequence[Answer], eval_point: EvalPoint) -> None:
        """A table of the answers beside the parent's, as a file that MLflow shows as a table."""
        parent_path = self.run_dir / PARENT_NAME
        if eval_point.first:
            texts = {answer.question: answer.text for answer in answers}
            with event_log.without("the table of the parent's answers", eval_point.step):
                parent_path.parent.mkdir(exist_ok=True)
                write_atomic(parent_path, json.dumps(texts, ensure_ascii=False))
        # A run that was resumed with other settings may ask what the parent was never asked.
        parents = read_json(parent_path, missing={})
        rows = [
            [answer.question, answer.reference, parents.get(answer.question, ""), answer.text]
            for answer in answers
        ]
        write_table(self.run_dir, event_log, "answers", eval_point.step, COLUMNS, rows)

    @cached_property
    def _told(self) -> set[str]:
        return set()

    @cached_property
    def _asked(self) -> list[Question]:
        chat = self.prepared.manifest.chat
        assert chat is not None
        questions = read_questions(self.prepared.folder / chat.questions)
        held_out = [q for q in questions if q.split == VALIDATION and q.answer_ids]
        return held_out[: self.settings.questions]

    @cached_property
    def _plain(self) -> list[tuple[list[int], Question]]:
        """Questions as running text, each with a new line behind it."""
        plain = TextPrompts.from_folder(self.prepared.tokenizer_folder)
        return [(plain.ids(question.question + "\n"), question) for question in self._asked]

    @cached_property
    def _tokenizer(self) -> Any:
        return read_tokenizer(self.prepared.tokenizer_folder / "tokenizer.json")


def _rows(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], width: int) -> Rows:
    """Prompts and answers as rows whose answers alone are predicted."""
    tokens = np.zeros((len(pairs), width), dtype=np.int64)
    weight = np.zeros((len(pairs), width), dtype=np.float32)
    for row, (prompt, answer) in enumerate(pairs):
        both = [*prompt, *answer]
        tokens[row, : len(both)] = both
        weight[row, len(prompt) : len(both)] = 1.0
    length = np.array([len(p) + len(a) for p, a in pairs], dtype=np.int32)
    segment = np.zeros((len(pairs), width), dtype=np.uint16)
    return Rows(tokens, length, weight=weight, segment=segment)
