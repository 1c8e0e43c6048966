"""Databases, scripted samplers and a server in a thread, for tests of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raymill.annotate.app import Site, create_app
from raymill.annotate.candidates import SamplingPlan, sample_answers
from raymill.annotate.database import DATABASE_NAME, Database
from raymill.annotate.items import Item, Messages, SampledAnswer, make_item, set_items
from raymill.data.messages.problems import Problem
from servers import served_in_thread

TOKEN = "a-token-for-tests"
SECRET_MODEL = "models:/sphinx/7"  # no answer of the server may contain it

Write = Callable[[str, int, int], str | Problem]


class ScriptedSampler:
    """Sampler whose answers are a function of the question, the seed and the number of calls so far."""

    def __init__(self, write: Write, model: str = SECRET_MODEL) -> None:
        self._write, self._model = write, model
        self.asked: list[tuple[str, int]] = []

    @property
    def identity(self) -> dict[str, Any]:
        return {"model": self._model}

    def answers(
        self, prompts: Sequence[Messages], seeds: Sequence[int]
    ) -> list[SampledAnswer | Problem]:
        found: list[SampledAnswer | Problem] = []
        for messages, seed in zip(prompts, seeds, strict=True):
            question = messages[-1]["content"]
            text = self._write(question, seed, len(self.asked))
            self.asked.append((question, seed))
            if isinstance(text, Problem):
                found.append(text)
                continue
            digest = f"digest of {self._model}"
            found.append(
                SampledAnswer(text, (1, 2), "stop", self._model, digest, seed, {"temperature": 0.7})
            )
        return found


def numbered(question: str, seed: int, number: int) -> str:
    """Return an answer that differs from every other."""
    return f"{question} Answer {number}, drawn with {seed}."


def ask(
    folder: Path, questions: Sequence[str], mode: Any = "rank", references: Sequence[str] = ()
) -> tuple[Database, list[Item]]:
    """Return a database with these questions as items, without answers."""
    database = Database(folder / DATABASE_NAME)
    given = [*references, *[None] * len(questions)]
    items = [
        make_item(mode, f"prompt {place}", [{"role": "user", "content": question}], answer, {})
        for place, (question, answer) in enumerate(zip(questions, given, strict=False))
    ]
    set_items(database, mode, items)
    return database, items


def asked(
    folder: Path,
    questions: int | Sequence[str],
    answers: int = 2,
    write: Write = numbered,
    models: Sequence[str] = (SECRET_MODEL,),
    references: Sequence[str] = (),
) -> tuple[Database, list[Item]]:
    """Return a database with these questions and their sampled answers."""
    if isinstance(questions, int):
        questions = [f"Question {number}?" for number in range(questions)]
    database, items = ask(folder, questions, references=references)
    samplers = [ScriptedSampler(write, model) for model in models]
    sample_answers(database, SamplingPlan(samplers, answers, seed=1), group=16)
    return database, items


@contextmanager
def served(site: Site, token: str = TOKEN) -> Iterator[str]:
    """Serve the site in a thread; give its address."""
    with served_in_thread(create_app(site, token)) as address:
        yield address
