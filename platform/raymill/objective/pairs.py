"""Pairs of answers to one prompt, the better one first: what reward models and DPO learn from.

Shapes: P pairs, S = 2P sequences (all better ones, then all worse), L tokens of the longest, T = L - 1
predictions, N answer tokens in all of them.

A row holds both conversations one after the other; here each becomes a row of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raymill.data.store.rows import Rows
from raymill.objective.heads import Fp32Head
from raymill.objective.log_probs import response_log_probs
from raymill.objective.objective import Forward, MetricSums
from raymill.objective.preferences import LOSSES, PairLogProbs, bradley_terry_loss
from raymill.objective.scores import last_scores
from raymill.objective.selected_logits import logits_at

# Log-probabilities of rows' answers under the reference: (better, worse), each [P].
Reference = Callable[[Rows], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Sides:
    """Both conversations of each pair."""

    tokens: torch.Tensor  # [S, L] int64
    length: torch.Tensor  # [S]
    answer: torch.Tensor  # [S, L] whether a token belongs to the answer
    weight: torch.Tensor  # [P] of the pair
    margin: torch.Tensor  # [P]

    @classmethod
    def of(cls, rows: Rows) -> Sides:
        """From rows of kind "preference"; no rows become one pair of weight 0."""
        if not len(rows):
            two = torch.zeros(2, 2, dtype=torch.long)
            zero = torch.zeros(1)
            return cls(two, torch.full((2,), 2), two == 1, zero, zero)
        assert rows.weight is not None and rows.segment is not None and rows.margin is not None
        count, first = len(rows), rows.first_length
        length = np.concatenate([first, rows.length - first]).astype(np.int64)
        width = int(length.max())
        tokens = np.zeros((2 * count, width), dtype=np.int64)
        weight = np.zeros((2 * count, width), dtype=np.float32)
        for row in range(count):
            start, stop = int(first[row]), int(rows.length[row])
            for side, part in ((row, slice(0, start)), (count + row, slice(start, stop))):
                tokens[side, : length[side]] = rows.tokens[row, part]
                weight[side, : length[side]] = rows.weight[row, part]
        return cls(
            torch.from_numpy(tokens),
            torch.from_numpy(length),
            torch.from_numpy(weight > 0),
            torch.from_numpy(pair_weights(rows)),
            torch.from_numpy(rows.margin.astype(np.float32)),
        )


def pair_weights(rows: Rows) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[P] What each pair counts: all pairs of one prompt count 1 together."""
    assert rows.weight is not None
    heaviest: np.ndarray[Any, np.dtype[np.float32]] = rows.weight.max(axis=1, initial=0.0)
    return heaviest


@dataclass(frozen=True)
class Compared:
    """What a model makes of pairs: losses without weights, and what it thinks of either answer."""

    loss: torch.Tensor  # [P]
    better: torch.Tensor  # [P] scores, or implicit rewards
    worse: torch.Tensor  # [P]
    weight: torch.Tensor  # [P] on the device
    log_prob_better: torch.Tensor | None = None  # [P] of the answers, where the model is a policy
    log_prob_worse: torch.Tensor | None = None

    def count(self, metric_sums: MetricSums) -> None:
        """How often, and by how much, the better answer is ahead."""
        weight = float(self.weight.sum())
        better_P, worse_P = self.better.detach().float(), self.worse.detach().float()
        named = {
            "reward/accuracy": ahead(better_P, worse_P),
            "reward/margin": better_P - worse_P,
            "reward/chosen": better_P,
            "reward/rejected": worse_P,
        }
        if self.log_prob_better is not None and self.log_prob_worse is not None:
            of_policy = self.log_prob_better.detach(), self.log_prob_worse.detach()
            named["policy/log_prob_accuracy"] = ahead(*of_policy)
            named["policy/log_prob_chosen"], named["policy/log_prob_rejected"] = of_policy
        for name, value_P in named.items():
            metric_sums.add(name, (value_P * self.weight).sum(), weight)


def ahead(better_P: torch.Tensor, worse_P: torch.Tensor) -> torch.Tensor:
    """[P] 1 where the better answer is ahead, 1/2 where they are level."""
    return (better_P > worse_P).float() + 0.5 * (better_P == worse_P).float()


@dataclass(frozen=True, kw_only=True)
class PairObjective(ABC):
    """An objective on pairs (see `Objective`), which says more of them than their loss."""

    metric_sums: MetricSums = field(default_factory=MetricSums)

    @abstractmethod
    def compared(self, forward: Forward, rows: Rows, device: torch.device) -> Compared:
        """What the model makes of each pair."""

    def weight(self, rows: Rows) -> float:
        """The summed weights of the pairs."""
        return float(pair_weights(rows).sum(dtype=np.float64))

    def losses(self, forward: Forward, rows: Rows, device: torch.device) -> torch.Tensor:
        """[P] Weighted losses; see `Objective.losses`."""
        found = self.compared(forward, rows, device)
        found.count(self.metric_sums)
        return found.loss * found.weight


@dataclass(frozen=True)
class RewardPairs(PairObjective):
    """Bradley–Terry: the better answer's score should be higher (see `bradley_terry_loss`).

    `head` is the module that makes a score of a hidden state; an answer's score is its last token's.
    """

    head: torch.nn.Module
    margin_scale: float = 0.0
    center_rewards: float = 0.0

    def compared(self, forward: Forward, rows: Rows, device: torch.device) -> Compared:
        """See `PairObjective`."""
        sides = Sides.of(rows)
        better_P, worse_P = self.scores(forward, sides, device)
        margin_P = self.margin_scale * sides.margin.to(device)
        loss_P = bradley_terry_loss(better_P, worse_P, margin_P, self.center_rewards)
        return Compared(loss_P, better_P, worse_P, sides.weight.to(device))

    def scores(
        self, forward: Forward, sides: Sides, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """([P], [P]) of the better and the worse answers, fp32."""
        score_S = last_scores(forward, self.head, sides.tokens, sides.length - 1, device)
        better_P, worse_P = score_S.chunk(2)
        return better_P, worse_P


@dataclass(frozen=True)
class PreferredAnswers(PairObjective):
    """DPO and its kin (`preferences.LOSSES`): the better answer should gain probability over the worse.

    `head` is the model's output matrix. `reference` is None where the loss needs none.
    """

    head: torch.nn.Module
    loss: str
    beta: float
    label_smoothing: float
    gamma: float
    reference: Reference | None = None

    def compared(self, forward: Forward, rows: Rows, device: torch.device) -> Compared:
        """See `PairObjective`. The implicit reward is that of Rafailov et al. 2023, section 4; without a
        reference, that of Meng et al. 2024, equation 4: β times the mean log-probability of a token."""
        sides = Sides.of(rows)
        policy = answer_log_probs(forward, self.head, sides, device)
        reference = torch.zeros_like(policy[0]), torch.zeros_like(policy[1])
        if self.reference is not None:
            found = self.reference(rows)  # without rows too: a forward pass may be collective
            if len(rows):
                reference = found[0].to(device), found[1].to(device)
        length_w_P, length_l_P = sides.answer[:, 1:].sum(dim=1).clamp(min=1).to(device).chunk(2)
        pairs = PairLogProbs(*policy, *reference, length_w_P, length_l_P)
        loss_P = LOSSES[self.loss](pairs, self.beta, self.label_smoothing, self.gamma)
        if self.reference is None:
            rewards = (
                self.beta * policy[0] / length_w_P,
                self.beta * policy[1] / length_l_P,
            )
        else:
            rewards = (
                self.beta * (policy[0] - reference[0]),
                self.beta * (policy[1] - reference[1]),
            )
        return Compared(loss_P, *rewards, sides.weight.to(device), *policy)


def answer_log_probs(
    forward: Forward, head: torch.nn.Module, sides: Sides, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """([P], [P]) Summed log-probabilities of the better and the worse answers, fp32.

    Logits are computed at the answers' places alone.
    """
    with Fp32Head(head):
        places = logits_at(forward, head, sides.tokens, sides.answer[:, 1:], device)
    log_prob_N, _ = response_log_probs(places.logits, places.target, 1.0)
    zero_S = torch.zeros(len(sides.tokens), dtype=torch.float32, device=device)
    better_P, worse_P = zero_S.index_add(0, places.row, log_prob_N * places.counts).chunk(2)
    return better_P, worse_P
