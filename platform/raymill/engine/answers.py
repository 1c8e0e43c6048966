"""Evaluation on held-out questions: the loss of their reference answers, and answers that the model generates.

Legend: Q questions, T tokens of the longest with its answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from raymill.data.chat.questions import Question, read_questions
from raymill.data.store.manifest import PreparedData, read_tokenizer
from raymill.data.store.rows import Rows
from raymill.data.store.split import VALIDATION
from raymill.data.text.control_tokens import ControlTokens
from raymill.data.text.text_prompts import TextPrompts
from raymill.durable import write_atomic
from raymill.engine.batches import Floats
from raymill.engine.compilation import uncompiled
from raymill.engine.evaluation import EvalPoint, evaluating
from raymill.engine.event_log import EventLog, write_table
from raymill.engine.group import WorkerGroup, on_all_ranks
from raymill.evaluate.answers import Answer, score
from raymill.evaluate.reasoning import PROMPT_END, opens_reasoning
from raymill.generate.batch import Completion, complete
from raymill.objective.language_modeling import AssistantTokens
from raymill.reading import read_json
from raymill.schema.sections import ChatEvaluation

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

COLUMNS = ("question", "reference", "parent", "answer")
PARENT_NAME = "samples/parent-answers.json"

# Token ids of a prompt and of the answer after it.
Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class AnsweredQuestions:
    """Loss of the reference answers after their own question and after another one, and scores of generated
    answers.

    The loss leaves out the end of turn. Before the first step the model is the parent; a parent without a chat
    template is then given plain text, as it was trained on.
    """

    prepared: PreparedData
    settings: ChatEvaluation
    objective: AssistantTokens
    run_dir: Path
    seed: int
    parent_chats: bool
    tokens: ControlTokens
    lockstep: bool  # ranks make equally many passes, since each gathers weights (ZeRO-3)
    event_log: EventLog | None

    def measure(
        self, model: PreTrainedModel, group: WorkerGroup, eval_point: EvalPoint
    ) -> dict[str, float]:
        """See `Evaluator`."""
        if not (eval_point.first or eval_point.due(self.settings.answer_every)):
            return {}
        # All ranks read the questions before any of them starts to communicate.
        on_all_ranks(group, lambda: self._plain_prompts)
        if not self._questions:
            return {}
        own = [(question.prompt_ids, question.answer_ids) for question in self._questions]
        # Questions stand in the order of a hash, so the previous one is an arbitrary other one. Its prompt is
        # cut at its beginning where it wouldn't fit into a row together with the answer.
        row_tokens = self.prepared.manifest.sequence_length + 1
        other = [
            (own[index - 1][0][-max(1, row_tokens - len(answer)) :], answer)
            for index, (_, answer) in enumerate(own)
        ]
        cut = sum(len(ids) < len(own[index - 1][0]) for index, (ids, _) in enumerate(other))
        metrics = {
            "answers/loss": self._loss(model, group, own),
            "answers/loss_other_question": self._loss(model, group, other),
            **self._count_cut(
                eval_point,
                cut,
                "other_questions_cut",
                f"a row of {row_tokens} tokens together with another question's answer",
            ),
        }
        plainly = eval_point.first and not self.parent_chats
        if plainly:
            pairs = [(plain, question.answer_ids) for plain, question in self._plain_prompts]
            metrics["answers/loss_plain"] = self._loss(model, group, pairs)
        # Every generated token makes a pass of another size, each of which would be compiled.
        with uncompiled():
            answers, cut = self._answers(model, group, plainly)
        limit = f"evaluation.answer_tokens={self.settings.answer_tokens}"
        metrics |= self._count_cut(
            eval_point, cut, "questions_cut", f"the model's positions together with {limit}"
        )
        metrics |= score(answers, self.settings.refusal_phrase).metrics("answers")
        if self.event_log is not None:
            self._write(self.event_log, answers, eval_point)
        return metrics

    def _loss(self, model: PreTrainedModel, group: WorkerGroup, pairs: Sequence[Pair]) -> float:
        """Return the nats per token of the answers, each after its prompt; collective."""
        nats = weight = 0.0
        size, world = self.settings.batch, group.world_size
        with evaluating(model):
            for first in range(0, len(pairs), size * world):
                batch = pairs[first + group.rank * size : first + (group.rank + 1) * size]
                rows = _rows(batch, max(len(p) + len(a) for p, a in pairs))
                nats += float(self.objective.losses(model, rows, group.device).double().sum())
                weight += self.objective.weight(rows)
        nats, weight = group.sum(nats, weight)
        return nats / weight

    def _count_cut(
        self, eval_point: EvalPoint, count: int, name: str, limit: str
    ) -> dict[str, float]:
        """Return the number of questions cut at their beginning as a metric, if any; log it the first time."""
        if not count:
            return {}
        if self.event_log is not None and name not in self._logged:
            self._logged.add(name)
            text = (
                f"{count} of {len(self._questions)} held-out questions lose their beginning: they don't fit "
                f"into {limit}"
            )
            self.event_log.write("message", eval_point.step, text=text)
        return {f"answers/{name}": float(count)}

    def _answers(
        self, model: PreTrainedModel, group: WorkerGroup, plainly: bool
    ) -> tuple[list[Answer], int]:
        """Generate greedy answers to all questions; collective.

        Return them on every rank, with the number of questions that the model didn't see whole.
        """
        prompts = [
            plain if plainly else question.prompt_ids for plain, question in self._plain_prompts
        ]
        # Every rank generates equally many; the last ranks answer some of the first questions again.
        share = -(-len(prompts) // group.world_size)
        first = group.rank * share
        indices = [index % len(prompts) for index in range(first, first + share)]
        stops = {*self.tokens.stops}
        completions = complete(
            model,
            [prompts[index] for index in indices],
            max_new_tokens=self.settings.answer_tokens,
            temperature=0.0,
            top_p=1.0,
            seeds=[self.seed] * len(indices),
            stop_ids=stops,
            batch_size=4 * self.settings.batch,
            lockstep=self.lockstep,
        )
        # Every question is counted for the first rank that answers it. The others add zeros, so that what is
        # sent depends on the questions and not on the number of ranks.
        own = {
            index: completion
            for number, (index, completion) in enumerate(zip(indices, completions, strict=True))
            if first + number < len(prompts)
        }
        of_rank = _completion_table(own, len(prompts), self.settings.answer_tokens)
        table_QK = group.sum_array(of_rank).astype(np.int64)
        texts = self._tokenizer.decode_batch(
            [
                [i for i in ids[:length].tolist() if i not in stops]
                for length, ids in zip(table_QK[:, 0], table_QK[:, 3:], strict=True)
            ],
            skip_special_tokens=False,
        )
        ends = self._tokenizer.decode_batch(
            [prompt[-PROMPT_END:] for prompt in prompts], skip_special_tokens=False
        )
        answers = [
            Answer(
                question.question,
                question.reference,
                text.strip(),
                bool(stopped),
                opens_reasoning(end),
            )
            for question, end, text, stopped in zip(
                self._questions, ends, texts, table_QK[:, 1], strict=True
            )
        ]
        return answers, int(table_QK[:, 2].sum())

    def _write(self, event_log: EventLog, answers: Sequence[Answer], eval_point: EvalPoint) -> None:
        """Write the answers as a table next to the parent's, which are kept from the first evaluation."""
        parent_path = self.run_dir / PARENT_NAME
        if eval_point.first:
            texts = {answer.question: answer.text for answer in answers}
            with event_log.optional_write("the table of the parent's answers", eval_point.step):
                parent_path.parent.mkdir(exist_ok=True)
                write_atomic(parent_path, json.dumps(texts, ensure_ascii=False))
        # A run resumed with other settings may have questions that the parent wasn't asked.
        parent_answers = read_json(parent_path, missing={})
        rows = [
            [
                answer.question,
                answer.reference,
                parent_answers.get(answer.question, ""),
                answer.text,
            ]
            for answer in answers
        ]
        write_table(self.run_dir, event_log, "answers", eval_point.step, COLUMNS, rows)

    @cached_property
    def _logged(self) -> set[str]:
        """Names of the metrics that the log has a message about."""
        return set()

    @cached_property
    def _questions(self) -> list[Question]:
        chat = self.prepared.manifest.chat
        assert chat is not None, "the prepared data is of conversations"
        questions = read_questions(self.prepared.folder / chat.questions)
        held_out = [q for q in questions if q.split == VALIDATION and q.answer_ids]
        return held_out[: self.settings.questions]

    @cached_property
    def _plain_prompts(self) -> list[tuple[list[int], Question]]:
        """Each question as running text with a newline after it, for a parent without a chat template."""
        encoder = TextPrompts.from_folder(self.prepared.tokenizer_folder)
        return [(encoder.ids(question.question + "\n"), question) for question in self._questions]

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return read_tokenizer(self.prepared.tokenizer_folder / "tokenizer.json")


def _completion_table(
    completions: Mapping[int, Completion], questions: int, answer_tokens: int
) -> Floats:
    """[Q, 3 + tokens] Length, end and cut of each completion, by its question, and its tokens; 0 elsewhere."""
    table_QK = np.zeros((questions, 3 + answer_tokens))
    for index, completion in completions.items():
        count = len(completion.ids)
        table_QK[index, :3] = count, completion.finish == "stop", completion.left_out > 0
        table_QK[index, 3 : 3 + count] = completion.ids
    return table_QK


def _rows(pairs: Sequence[Pair], width: int) -> Rows:
    """Return rows of prompts and answers, of which only the answers are predicted."""
    tokens = np.zeros((len(pairs), width), dtype=np.int64)
    weight = np.zeros((len(pairs), width), dtype=np.float32)
    for row, (prompt, answer) in enumerate(pairs):
        both = [*prompt, *answer]
        tokens[row, : len(both)] = both
        weight[row, len(prompt) : len(both)] = 1.0
    length = np.array([len(p) + len(a) for p, a in pairs], dtype=np.int32)
    segment = np.zeros((len(pairs), width), dtype=np.uint16)
    return Rows(tokens, length, weight=weight, segment=segment)
