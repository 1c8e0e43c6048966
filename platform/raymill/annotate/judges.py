"""Synthetic judges: rules that stand in for people where there are none, and are named as such everywhere.

They show that what follows works, and by how much noise spoils it; they aren't human preferences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from raymill.annotate.database import Database
from raymill.annotate.items import Answer, Item, answers_of, ready_items, shown_order
from raymill.annotate.judgements import SYNTHETIC, Submission, record
from raymill.config.bind import nearest
from raymill.data.store.split import hash_fraction
from raymill.durable import sha256_json
from raymill.errors import ConfigError
from raymill.evaluate.answers import POINTS, token_f1, verdict
from raymill.evaluate.reasoning import after_reasoning

Score = tuple[float, ...]


class Judge(Protocol):
    """Who ranks answers by a rule."""

    @property
    def name(self) -> str: ...

    def judge(self, item: Item, answers: Sequence[Answer]) -> tuple[int, ...] | None:
        """Ranks, 1 the best, equal where nothing tells answers apart; None: the rule doesn't apply."""
        ...


@dataclass(frozen=True)
class ScoringJudge:
    """Ranks by a score, the higher the better."""

    name: str
    score: Callable[[Item, Answer], Score | None]

    def judge(self, item: Item, answers: Sequence[Answer]) -> tuple[int, ...] | None:
        """See `Judge`."""
        scores = [self.score(item, answer) for answer in answers]
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return None
        levels = sorted(set(known), reverse=True)
        return tuple(levels.index(score) + 1 for score in known)


@dataclass(frozen=True)
class NoisyJudge:
    """Another judge, of whose judgements a share, chosen by `seed`, is the wrong way round."""

    judged: Judge
    flip: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.judged.name}+noise{self.flip:g}"

    def judge(self, item: Item, answers: Sequence[Answer]) -> tuple[int, ...] | None:
        """See `Judge`."""
        ranks = self.judged.judge(item, answers)
        if ranks is None or hash_fraction(f"flip {item.prompt_id}", self.seed) >= self.flip:
            return ranks
        return tuple(max(ranks) + 1 - rank for rank in ranks)


def _answer_f1(item: Item, answer: Answer) -> Score | None:
    """An answer that ends beats one that doesn't; then token F1 with the reference decides."""
    if item.reference is None:
        return None
    return float(answer.finish == "stop"), token_f1(
        after_reasoning(answer.text), after_reasoning(item.reference)
    )


def _right_or_honest(item: Item, answer: Answer) -> Score | None:
    """As the reward function of that name pays: right, before declined, before wrong."""
    if item.reference is None:
        return None
    return (POINTS[verdict(after_reasoning(answer.text), after_reasoning(item.reference))],)


def _length(item: Item, answer: Answer) -> Score:
    """The shorter, the better."""
    return (-float(len(answer.text)),)


JUDGES: dict[str, Callable[[Item, Answer], Score | None]] = {
    "answer_f1": _answer_f1,
    "right_or_honest": _right_or_honest,
    "length": _length,
}


def judge_named(name: str, noise: float, seed: int) -> Judge:
    """A judge of the registry, with noise where that is above 0.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in JUDGES:
        known = ", ".join(JUDGES)
        raise ConfigError([f"judge={name}: judge is one of {known}{nearest(name, [*JUDGES])}"])
    judge = ScoringJudge(name, JUDGES[name])
    return NoisyJudge(judge, noise, seed) if noise else judge


def judge_all(database: Database, judge: Judge) -> Counter[str]:
    """Let a judge decide on every item that has answers; returns how often it decided what.

    Its judgements stand in the same table as people's, with annotator and judge `synthetic:<name>`; those
    that are there already stay, and count.
    """
    name = f"{SYNTHETIC}{judge.name}"
    for item in ready_items(database):
        answers = answers_of(database, item.item_id)
        shown = [answers[place] for place in shown_order(name, item.item_id, len(answers))]
        ranks = judge.judge(item, shown)
        submission = Submission(
            judgement_id=sha256_json([name, item.item_id])[:32],
            item_id=item.item_id,
            annotator=name,
            kind="rank",
            decision="skip" if ranks is None else "ranked",
            seconds=0.0,
            ranks=ranks,
            judge=name,
        )
        record(database, submission)
    rows = database.rows(
        "SELECT decision, count(*) AS items FROM ranked JOIN items USING (item_id) "
        "WHERE active AND annotator = ? GROUP BY decision",
        name,
    )
    return Counter({row["decision"]: row["items"] for row in rows})
