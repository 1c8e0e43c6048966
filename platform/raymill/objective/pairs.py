"""Objectives on pairs of answers to one prompt, the better one first: reward modeling and DPO.

Shapes: P pairs, S = 2P sequences (all better ones, then all worse), L tokens of the longest, T = L - 1
predictions, N answer tokens in all sequences.

A prepared row holds both conversations one after the other; here each becomes a sequence of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from raymill.data.store.rows import Rows
from raymill.objective.forward import scores_at, selected_logits
from raymill.objective.heads import Fp32Head
from raymill.objective.log_probs import response_log_probs
from raymill.objective.objective import Forward, MetricSums
from raymill.objective.preferences import LOSSES, PairLogProbs, bradley_terry_loss

# Log-probabilities of rows' answers under the reference: (better, worse), each [P].
Reference = Callable[[Rows], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class PairSequences:
    """Both conversations of each pair, as sequences."""

    tokens: torch.Tensor  # [S, L] int64
    length: torch.Tensor  # [S]
    answer: torch.Tensor  # [S, L] True where a token belongs to the answer
    weight: torch.Tensor  # [P]
    margin: torch.Tensor  # [P]

    @classmethod
    def from_rows(cls, rows: Rows) -> PairSequences:
        """Split rows of kind "preference"; no rows become one pair of weight 0."""
        if not len(rows):
            two = torch.zeros(2, 2, dtype=torch.long)
            zero = torch.zeros(1)
            return cls(two, torch.full((2,), 2), two == 1, zero, zero)
        assert rows.weight is not None, "rows of pairs carry weights"
        assert rows.margin is not None, "rows of pairs carry margins"
        count, first = len(rows), rows.first_length
        length = np.concatenate([first, rows.length - first]).astype(np.int64)
        width = int(length.max())
        tokens = np.zeros((2 * count, width), dtype=np.int64)
        weight = np.zeros((2 * count, width), dtype=np.float32)
        for row in range(count):
            start, stop = int(first[row]), int(rows.length[row])
            for sequence, part in ((row, slice(0, start)), (count + row, slice(start, stop))):
                tokens[sequence, : length[sequence]] = rows.tokens[row, part]
                weight[sequence, : length[sequence]] = rows.weight[row, part]
        return cls(
            torch.from_numpy(tokens),
            torch.from_numpy(length),
            torch.from_numpy(weight > 0),
            torch.from_numpy(pair_weights(rows)),
            torch.from_numpy(rows.margin.astype(np.float32)),
        )


def pair_weights(rows: Rows) -> NDArray[np.float32]:
    """[P] Weight of each pair; all pairs of one prompt have weight 1 together."""
    assert rows.weight is not None, "rows of pairs carry weights"
    heaviest: NDArray[np.float32] = rows.weight.max(axis=1, initial=0.0)
    return heaviest


@dataclass(frozen=True)
class PairComparison:
    """Losses of pairs before weighting, and the model's score or implicit reward of either answer; [P] each."""

    loss: torch.Tensor
    better: torch.Tensor
    worse: torch.Tensor
    weight: torch.Tensor
    # Log-probabilities of the answers, where the model is a policy.
    log_prob_better: torch.Tensor | None = None
    log_prob_worse: torch.Tensor | None = None

    def add_to(self, metric_sums: MetricSums) -> None:
        """Add the metrics of how often, and by how much, the better answer is ahead."""
        weight = float(self.weight.sum())
        better_P, worse_P = self.better.detach().float(), self.worse.detach().float()
        named = {
            "reward/accuracy": ahead(better_P, worse_P),
            "reward/margin": better_P - worse_P,
            "reward/chosen": better_P,
            "reward/rejected": worse_P,
        }
        if self.log_prob_better is not None and self.log_prob_worse is not None:
            better_P, worse_P = self.log_prob_better.detach(), self.log_prob_worse.detach()
            named["policy/log_prob_accuracy"] = ahead(better_P, worse_P)
            named["policy/log_prob_chosen"] = better_P
            named["policy/log_prob_rejected"] = worse_P
        for name, value_P in named.items():
            metric_sums.add(name, (value_P * self.weight).sum(), weight)


def ahead(better_P: torch.Tensor, worse_P: torch.Tensor) -> torch.Tensor:
    """[P] 1 where the better answer is ahead, 1/2 where both are equal."""
    return (better_P > worse_P).float() + 0.5 * (better_P == worse_P).float()


@dataclass(frozen=True, kw_only=True)
class PairObjective(ABC):
    """Objective on pairs (see `Objective`) that logs more than their loss."""

    metric_sums: MetricSums = field(default_factory=MetricSums)

    @abstractmethod
    def compare(self, forward: Forward, rows: Rows, device: torch.device) -> PairComparison:
        """Compare the answers of each pair."""

    def weight(self, rows: Rows) -> float:
        """Return the summed weights of the pairs."""
        return float(pair_weights(rows).sum(dtype=np.float64))

    def losses(self, forward: Forward, rows: Rows, device: torch.device) -> torch.Tensor:
        """[P] Weighted losses; see `Objective.losses`."""
        comparison = self.compare(forward, rows, device)
        comparison.add_to(self.metric_sums)
        return comparison.loss * comparison.weight


@dataclass(frozen=True)
class RewardPairs(PairObjective):
    """Bradley–Terry: the better answer's score should be higher (see `bradley_terry_loss`).

    `head` is the module that computes a score from a hidden state; an answer's score is its last token's.
    """

    head: torch.nn.Module
    margin_scale: float = 0.0
    center_rewards: float = 0.0

    def compare(self, forward: Forward, rows: Rows, device: torch.device) -> PairComparison:
        """See `PairObjective`."""
        pairs = PairSequences.from_rows(rows)
        better_P, worse_P = self.scores(forward, pairs, device)
        margin_P = self.margin_scale * pairs.margin.to(device)
        loss_P = bradley_terry_loss(better_P, worse_P, margin_P, self.center_rewards)
        return PairComparison(loss_P, better_P, worse_P, pairs.weight.to(device))

    def scores(
        self, forward: Forward, pairs: PairSequences, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """([P], [P]) Scores of the better and the worse answers, fp32."""
        score_S = scores_at(forward, self.head, pairs.tokens, pairs.length - 1, device)
        better_P, worse_P = score_S.chunk(2)
        return better_P, worse_P


@dataclass(frozen=True)
class PreferredAnswers(PairObjective):
    """DPO and related losses (`preferences.LOSSES`): the better answer should gain probability over the worse.

    `head` is the model's output matrix. `reference` is None where the loss needs none.
    """

    head: torch.nn.Module
    loss: str
    beta: float
    label_smoothing: float
    gamma: float
    reference: Reference | None = None

    def compare(self, forward: Forward, rows: Rows, device: torch.device) -> PairComparison:
        """See `PairObjective`.

        The implicit reward is that of Rafailov et al. 2023, section 4; without a reference, that of Meng et al.
        2024, equation 4: β times the mean log-probability per token.
        """
        pairs = PairSequences.from_rows(rows)
        policy = answer_log_probs(forward, self.head, pairs, device)
        reference = torch.zeros_like(policy[0]), torch.zeros_like(policy[1])
        if self.reference is not None:
            # Also called without rows: its forward pass may be collective.
            log_probs = self.reference(rows)
            if len(rows):
                reference = log_probs[0].to(device), log_probs[1].to(device)
        length_w_P, length_l_P = pairs.answer[:, 1:].sum(dim=1).clamp(min=1).to(device).chunk(2)
        pair_log_probs = PairLogProbs(*policy, *reference, length_w_P, length_l_P)
        loss_P = LOSSES[self.loss](pair_log_probs, self.beta, self.label_smoothing, self.gamma)
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
        return PairComparison(loss_P, *rewards, pairs.weight.to(device), *policy)


def answer_log_probs(
    forward: Forward, head: torch.nn.Module, pairs: PairSequences, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """([P], [P]) Summed log-probabilities of the better and the worse answers, fp32.

    Logits are computed only at the answers' tokens.
    """
    with Fp32Head(head):
        selected = selected_logits(forward, head, pairs.tokens, pairs.answer[:, 1:], device)
    log_prob_N, _ = response_log_probs(selected.logits, selected.target, 1.0)
    zero_S = torch.zeros(len(pairs.tokens), dtype=torch.float32, device=device)
    better_P, worse_P = zero_S.index_add(0, selected.row, log_prob_N * selected.counts).chunk(2)
    return better_P, worse_P
