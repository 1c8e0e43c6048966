"""Objectives of the policy and its critic on sampled answers (PPO, GRPO and their relatives).

Shapes: B answers, T predictions (see `rollout_batch.py`). Losses are summed with a weight per token and
divided by the global batch's denominator (see `aggregation_weights`), so no result depends on micro-batch,
accumulation or world size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from raymill.objective.forward import all_scores
from raymill.objective.objective import Forward, MetricSums
from raymill.rl.losses import (
    aggregation_denominator,
    aggregation_weights,
    clipped_surrogate,
    kl,
    truncated_importance_weight,
    value_loss,
)
from raymill.rl.rollout_batch import RolloutBatch, token_log_probs
from raymill.schema.sections import AlgorithmConfig


@dataclass(frozen=True)
class PolicyGradient:
    """Clipped surrogate, with a KL loss and an entropy bonus if they are configured.

    `head` is the model's output matrix; `max_tokens` is the largest possible length of an answer.
    """

    head: torch.nn.Module
    algorithm: AlgorithmConfig
    temperature: float
    max_tokens: int
    metric_sums: MetricSums = field(default_factory=MetricSums)

    def weight(self, rows: RolloutBatch) -> float:
        """Return these answers' share of the divisor of the summed losses."""
        return aggregation_denominator(self.algorithm.aggregation, rows.mask, self.max_tokens)

    def losses(self, forward: Forward, rows: RolloutBatch, device: torch.device) -> torch.Tensor:
        """[B] Weighted losses of the answers; see `Objective.losses`."""
        algorithm = self.algorithm
        mask_BT = rows.mask.to(device)
        log_prob_BT, entropy_BT = token_log_probs(
            forward, self.head, rows, self.temperature, device
        )
        # With one update per step, π_old is π itself, which saves a forward pass.
        old_BT = log_prob_BT.detach() if rows.old is None else rows.old.to(device)
        assert rows.advantage is not None, "advantages are computed before the loss"
        advantage_BT = rows.advantage.to(device)
        loss_BT = clipped_surrogate(
            log_prob_BT,
            old_BT,
            advantage_BT,
            algorithm.clip_low,
            algorithm.clip_high,
            algorithm.dual_clip,
        )
        sampler_BT = rows.sampler.to(device)
        if algorithm.importance_cap is not None:
            loss_BT = loss_BT * truncated_importance_weight(
                old_BT, sampler_BT, algorithm.importance_cap
            )
        if algorithm.kl == "loss":
            assert rows.reference is not None, "a KL loss needs the reference's log-probabilities"
            distance_BT = kl(algorithm.kl_estimator, log_prob_BT, rows.reference.to(device))
            loss_BT = loss_BT + rows.kl_coefficient * distance_BT
        if algorithm.entropy_coefficient:
            loss_BT = loss_BT - algorithm.entropy_coefficient * entropy_BT
        self._add_metrics(
            log_prob_BT.detach(), old_BT, sampler_BT, entropy_BT.detach(), rows, mask_BT
        )
        weight_BT = aggregation_weights(algorithm.aggregation, mask_BT, self.max_tokens)
        return (loss_BT * weight_BT).sum(dim=1)

    def _add_metrics(
        self,
        log_prob_BT: torch.Tensor,
        old_BT: torch.Tensor,
        sampler_BT: torch.Tensor,
        entropy_BT: torch.Tensor,
        rows: RolloutBatch,
        mask_BT: torch.Tensor,
    ) -> None:
        """Add metrics that are means over the tokens learned from."""
        tokens = float(mask_BT.sum())
        # Masked before the exponential: the ratio of a token that isn't learned from may overflow.
        log_ratio_BT = (log_prob_BT - old_BT) * mask_BT
        ratio_BT = log_ratio_BT.exp()
        low, high = 1 - self.algorithm.clip_low, 1 + self.algorithm.clip_high
        clipped_BT = ((ratio_BT < low) | (ratio_BT > high)).float()
        sampler_ratio_BT = ((sampler_BT - old_BT) * mask_BT).abs().exp()
        named = {
            "policy/entropy": entropy_BT,
            "policy/ratio": ratio_BT,
            "policy/clip_fraction": clipped_BT,
            "policy/kl_old": kl("k3", -log_ratio_BT, torch.zeros_like(log_ratio_BT)),
            "sampler/ratio": sampler_ratio_BT,
        }
        if rows.reference is not None:
            reference_BT = rows.reference.to(mask_BT.device)
            named["policy/kl_reference"] = kl("k3", log_prob_BT, reference_BT)
        for name, value_BT in named.items():
            self.metric_sums.add(name, (value_BT * mask_BT).sum(), tokens)


@dataclass(frozen=True)
class Critic:
    """Prediction of the return at every token of an answer; `head` is the module that computes the value."""

    head: torch.nn.Module
    value_clip: float | None
    metric_sums: MetricSums = field(default_factory=MetricSums)

    def weight(self, rows: RolloutBatch) -> float:
        """Return the number of tokens learned from."""
        return float(rows.mask.sum())

    def losses(self, forward: Forward, rows: RolloutBatch, device: torch.device) -> torch.Tensor:
        """[B] Summed losses of the answers; see `Objective.losses`."""
        assert rows.value is not None, "the critic's values are computed at the start of the step"
        assert rows.returns is not None, "returns are computed with the advantages"
        mask_BT = rows.mask.to(device)
        value_BT = self.values(forward, rows, device)
        returns_BT = rows.returns.to(device)
        loss_BT = value_loss(value_BT, rows.value.to(device), returns_BT, self.value_clip)
        return (loss_BT * mask_BT).sum(dim=1)

    def values(self, forward: Forward, rows: RolloutBatch, device: torch.device) -> torch.Tensor:
        """[B, T] Predicted return before each token is drawn."""
        return all_scores(forward, self.head, rows.tokens, device)[:, :-1]
