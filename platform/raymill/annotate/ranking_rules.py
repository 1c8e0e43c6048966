"""Automatic ranking rules, standing in for human annotators and labeled `synthetic:` in everything they make.

They show that the later stages work, and how much noise in the rankings those tolerate. They are no human
preferences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from raymill.annotate.database import Database
from raymill.annotate.decisions import SYNTHETIC, Submission, record
from raymill.annotate.items import Item, SampledAnswer, answers_to, ready_items, shown_order
from raymill.data.store.split import hash_fraction
from raymill.durable import sha256_json
from raymill.errors import ConfigError
from raymill.evaluate.answers import POINTS, token_f1, verdict
from raymill.evaluate.reasoning import after_reasoning
from raymill.schema.bind import nearest

Score = tuple[float, ...]


class RankingRule(Protocol):
    """Automatic ranking of the answers to an item."""

    @property
    def name(self) -> str: ...

    def rank(self, item: Item, answers: Sequence[SampledAnswer]) -> tuple[int, ...] | None:
        """Return ranks, 1 for the best, equal for ties; None where the rule doesn't apply."""
        ...


@dataclass(frozen=True)
class ScoringRule:
    """Rule that ranks by a score, the highest first."""

    name: str
    score: Callable[[Item, SampledAnswer], Score | None]

    def rank(self, item: Item, answers: Sequence[SampledAnswer]) -> tuple[int, ...] | None:
        """See `RankingRule`."""
        scores = [self.score(item, answer) for answer in answers]
        known = [score for score in scores if score is not None]
        if len(known) < len(scores):
            return None
        # Equal scores share a rank, which the export states as a tie.
        levels = sorted(set(known), reverse=True)
        return tuple(levels.index(score) + 1 for score in known)


@dataclass(frozen=True)
class NoisyRule:
    """Rule that reverses the ranking of another rule for a share of the items, chosen by `seed`."""

    rule: RankingRule
    flip: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.rule.name}+noise{self.flip:g}"

    def rank(self, item: Item, answers: Sequence[SampledAnswer]) -> tuple[int, ...] | None:
        """See `RankingRule`."""
        ranks = self.rule.rank(item, answers)
        # The prompt and not the item decides, so that equal models get equal noise.
        if ranks is None or hash_fraction(f"flip {item.prompt_id}", self.seed) >= self.flip:
            return ranks
        return tuple(max(ranks) + 1 - rank for rank in ranks)


def _answer_f1(item: Item, answer: SampledAnswer) -> Score | None:
    """Score a finished answer above one that was cut off, then by token F1 with the reference."""
    if item.reference is None:
        return None
    # A cut-off answer may share many tokens with the reference and still be useless.
    return float(answer.finish == "stop"), token_f1(
        after_reasoning(answer.text), after_reasoning(item.reference)
    )


def _right_or_honest(item: Item, answer: SampledAnswer) -> Score | None:
    """Score as the reward function of the same name does: right above declined above wrong."""
    if item.reference is None:
        return None
    return (POINTS[verdict(after_reasoning(answer.text), after_reasoning(item.reference))],)


def _length(item: Item, answer: SampledAnswer) -> Score:
    """Score shorter answers higher."""
    return (-float(len(answer.text)),)


RULES: dict[str, Callable[[Item, SampledAnswer], Score | None]] = {
    "answer_f1": _answer_f1,
    "right_or_honest": _right_or_honest,
    "length": _length,
}


def resolve_rule(name: str, noise: float, seed: int) -> RankingRule:
    """Return the rule of that name, with noise if `noise` is above 0.

    Raises:
        ConfigError: there is no such rule.
    """
    if name not in RULES:
        known = ", ".join(RULES)
        raise ConfigError([f"judge={name}: judge is one of {known}{nearest(name, [*RULES])}"])
    rule = ScoringRule(name, RULES[name])
    return NoisyRule(rule, noise, seed) if noise else rule


def rank_with_rule(database: Database, rule: RankingRule) -> Counter[str]:
    """Rank the answers to every ready item by a rule; return how often each decision was made.

    The rule's judgments stand in the same table as people's, with annotator and judge `synthetic:<name>`.
    Those of an earlier call stay, and are counted again.
    """
    name = f"{SYNTHETIC}{rule.name}"
    for item in ready_items(database):
        answers = answers_to(database, item.item_id)
        shown = [answers[number] for number in shown_order(name, item.item_id, len(answers))]
        ranks = rule.rank(item, shown)
        # The id depends on rule and item alone, so a second call records nothing new.
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
