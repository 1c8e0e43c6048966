"""Answers to compare, made ahead of the people who compare them and kept once they are made.

Answers that are the same, or that a conversation can't hold, are drawn again a few times; an item that
then still has such is left out and counted.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from raymill.annotate.database import Database
from raymill.annotate.items import Answer, Item, keep_answers, set_unusable, waiting_items
from raymill.annotate.sampler import Sampler
from raymill.data.messages.conversation import read_conversation
from raymill.data.messages.problems import Problem
from raymill.durable import sha256_json

TRIES = 5  # draws of one answer
SAME = "the answers were the same again and again"


@dataclass(frozen=True)
class Drawing:
    """How answers are made: `answers` an item, by these models in turn; `seed` decides every draw."""

    samplers: Sequence[Sampler]
    answers: int
    seed: int

    def who(self, place: int, number: int) -> int:
        """Which sampler gives answer `number` of the item at `place`: all of them equally often."""
        return (place * self.answers + number) % len(self.samplers)


@dataclass
class _Wanted:
    place: int
    item: Item
    answers: dict[int, Answer] = field(default_factory=dict)
    problem: Problem | None = None  # nothing will mend it
    missing: str = SAME  # why the last draw was no use

    def take(self, number: int, found: Answer | Problem) -> None:
        if isinstance(found, Problem):
            self.problem = found
            return
        spoken = [*self.item.messages, {"role": "assistant", "content": found.text}]
        unusable = read_conversation({"messages": spoken}, "messages")
        if isinstance(unusable, Problem):
            self.missing = unusable.why
        elif found.text.strip() in {answer.text.strip() for answer in self.answers.values()}:
            self.missing = SAME
        else:
            self.answers[number] = found


def prepare(
    database: Database,
    drawing: Drawing,
    group: int,
    stop: threading.Event | None = None,
    note: Callable[[], None] = lambda: None,
) -> None:
    """Make the answers of all items that lack them, `group` items at a time, until `stop` is set.

    `note` is called after each group.
    """
    while not (stop and stop.is_set()) and (waiting := waiting_items(database, group)):
        wanted = [_Wanted(place, item) for place, item in waiting]
        for attempt in range(TRIES):
            _draw(drawing, wanted, attempt)
        for one in wanted:
            if one.problem is None and len(one.answers) == drawing.answers:
                ordered = [one.answers[number] for number in range(drawing.answers)]
                keep_answers(database, one.item, ordered)
            else:
                set_unusable(
                    database, one.item, one.problem.why if one.problem is not None else one.missing
                )
        note()


def _draw(drawing: Drawing, wanted: Sequence[_Wanted], attempt: int) -> None:
    """One draw of whatever is missing, all that one model gives together."""
    by_sampler: dict[int, list[tuple[_Wanted, int]]] = defaultdict(list)
    for one in wanted:
        for number in range(drawing.answers):
            if number not in one.answers and one.problem is None:
                by_sampler[drawing.who(one.place, number)].append((one, number))
    for index, draws in by_sampler.items():
        prompts = [one.item.messages for one, _ in draws]
        seeds = [
            draw_seed(drawing.seed, one.item.prompt_id, number, attempt) for one, number in draws
        ]
        found = drawing.samplers[index].answers(prompts, seeds)
        for (one, number), answer in zip(draws, found, strict=True):
            one.take(number, answer)


def draw_seed(seed: int, prompt_id: str, number: int, attempt: int) -> int:
    """The seed of one draw: 63 bits, which SQLite and torch hold. The prompt decides and not the item, whose
    name tells of the model's history: equal weights give equal answers, wherever they were trained."""
    return int(sha256_json([seed, prompt_id, number, attempt])[:16], 16) >> 1


class Preparation:
    """`prepare` in a thread of its own, beside a page that people use."""

    def __init__(
        self,
        database: Database,
        drawing: Drawing,
        group: int,
        ended: Callable[[BaseException | None], None],
    ) -> None:
        """`ended` is called once, with what went wrong, if something did."""
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(1, "preparation")
        self._done = self._pool.submit(prepare, database, drawing, group, self._stop)
        self._done.add_done_callback(lambda done: ended(done.exception()))

    def stop(self) -> None:
        """Return when the answers in work are stored."""
        self._stop.set()
        self._pool.shutdown()

    @property
    def failure(self) -> BaseException | None:
        """What ended it before its time."""
        return self._done.exception() if self._done.done() else None
