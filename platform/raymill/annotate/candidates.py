"""Sampling the answers to rank, ahead of the people who rank them. Answers are stored and never resampled.

An answer that equals another one, or that no conversation can hold, is sampled again a few times. An item
that still lacks answers after that is left out and counted.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from raymill.annotate.database import Database
from raymill.annotate.items import (
    Item,
    SampledAnswer,
    keep_answers,
    set_unusable,
    waiting_items,
)
from raymill.annotate.sampler import Sampler
from raymill.data.messages.conversation import read_conversation
from raymill.data.messages.problems import Problem
from raymill.durable import sha256_json

# Sampling at a low temperature repeats itself, so the number of attempts is limited.
TRIES = 5
SAME = "its answers were the same in every attempt"


@dataclass(frozen=True)
class SamplingPlan:
    """Number of answers per item, the samplers that take turns, and the seed of every sample."""

    samplers: Sequence[Sampler]
    answers: int
    seed: int

    def sampler_index(self, position: int, number: int) -> int:
        """Choose the sampler of answer `number` to the item at `position`, each equally often."""
        return (position * self.answers + number) % len(self.samplers)


@dataclass
class _PendingItem:
    position: int
    item: Item
    answers: dict[int, SampledAnswer] = field(default_factory=dict)
    problem: Problem | None = None  # permanent: another sample would not help
    rejection: str = SAME  # of the last sample that was rejected

    def add(self, number: int, answer: SampledAnswer | Problem) -> None:
        if isinstance(answer, Problem):
            self.problem = answer
            return
        messages = [*self.item.messages, {"role": "assistant", "content": answer.text}]
        conversation = read_conversation({"messages": messages}, "messages")
        if isinstance(conversation, Problem):
            self.rejection = conversation.why
        elif answer.text.strip() in {known.text.strip() for known in self.answers.values()}:
            self.rejection = SAME
        else:
            self.answers[number] = answer


def sample_answers(
    database: Database,
    plan: SamplingPlan,
    group: int,
    stop: threading.Event | None = None,
    on_group: Callable[[], None] = lambda: None,
) -> None:
    """Sample and store the missing answers, `group` items at a time, until `stop` is set.

    `on_group` is called after each group.
    """
    while not (stop and stop.is_set()) and (waiting := waiting_items(database, group)):
        # Items stay grouped through all attempts, so that their missing answers are sampled together.
        pending = [_PendingItem(position, item) for position, item in waiting]
        for attempt in range(TRIES):
            _sample_missing(plan, pending, attempt)
        for entry in pending:
            if entry.problem is None and len(entry.answers) == plan.answers:
                ordered = [entry.answers[number] for number in range(plan.answers)]
                keep_answers(database, entry.item, ordered)
            else:
                reason = entry.rejection if entry.problem is None else entry.problem.why
                set_unusable(database, entry.item, reason)
        on_group()


def _sample_missing(plan: SamplingPlan, pending: Sequence[_PendingItem], attempt: int) -> None:
    """Sample every missing answer once, with one call per model."""
    by_sampler: dict[int, list[tuple[_PendingItem, int]]] = defaultdict(list)
    for entry in pending:
        for number in range(plan.answers):
            if number not in entry.answers and entry.problem is None:
                index = plan.sampler_index(entry.position, number)
                by_sampler[index].append((entry, number))
    # One call per model keeps its batches as large as possible.
    for index, missing in by_sampler.items():
        prompts = [entry.item.messages for entry, _ in missing]
        seeds = [
            sample_seed(plan.seed, entry.item.prompt_id, number, attempt)
            for entry, number in missing
        ]
        answers = plan.samplers[index].answers(prompts, seeds)
        for (entry, number), answer in zip(missing, answers, strict=True):
            entry.add(number, answer)


def sample_seed(seed: int, prompt_id: str, number: int, attempt: int) -> int:
    """Derive the seed of one sample: 63 bits, so that it fits both SQLite and torch.

    It depends on the prompt and not on the item, because an item's name contains the path of the model:
    equal weights give equal answers wherever they were trained.
    """
    return int(sha256_json([seed, prompt_id, number, attempt])[:16], 16) >> 1


class BackgroundSampler:
    """Thread that runs `sample_answers` while people use the page."""

    def __init__(
        self,
        database: Database,
        plan: SamplingPlan,
        group: int,
        on_end: Callable[[BaseException | None], None],
    ) -> None:
        """`on_end` is called once, with the error that ended the thread, or None."""
        self._stop = threading.Event()
        # A single thread: a model samples one batch at a time.
        self._pool = ThreadPoolExecutor(1, "sample-answers")
        self._future = self._pool.submit(sample_answers, database, plan, group, self._stop)
        self._future.add_done_callback(lambda future: on_end(future.exception()))

    def stop(self) -> None:
        """Stop after the current group of answers is stored."""
        self._stop.set()
        self._pool.shutdown()

    @property
    def failure(self) -> BaseException | None:
        """The error that ended the thread, if there was one."""
        return self._future.exception() if self._future.done() else None
