"""Losses of policy-gradient methods: PPO (Schulman et al. 2017) and its relatives. Pure.

Shapes: B answers, T response tokens. Losses have one value per token; `aggregation_weights` then averages
them over the unmasked tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from raymill.errors import NonFiniteError

# e^80 is still a finite fp32 number; an infinite ratio would turn an advantage of 0 into NaN.
MAX_LOG_RATIO = 80.0


def kl(estimator: str, log_prob: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Estimate KL(π ‖ π_ref) per token drawn from π, with d = log π − log π_ref.

    k1 = d, k2 = d²/2, k3 = e^(−d) − 1 + d (Schulman 2020, "Approximating KL Divergence"). As values, k1 and
    k3 are unbiased. As a loss on tokens drawn from π, k2's expected gradient E[d ∇log π] is that of the KL;
    k1's, E[∇log π], is zero; k3's, E[(1 − e^(−d)) ∇log π] = −E_ref[∇log π], is that of the reverse KL(π_ref
    ‖ π). All this holds for each token given the tokens before it. A token's effect on the distance of
    later tokens only reaches it through the reward, for which k1 is the right estimator.
    """
    d = log_prob - reference
    if estimator == "k1":
        return d
    if estimator == "k2":
        return d**2 / 2
    if estimator == "k3":
        return torch.expm1(-d) + d
    raise ValueError(f"{estimator!r} isn't an estimator of KL: k1, k2 or k3")


def clipped_surrogate(
    log_prob: torch.Tensor,
    old: torch.Tensor,
    advantage: torch.Tensor,
    low: float,
    high: float,
    dual: float | None,
) -> torch.Tensor:
    """−min(rA, clip(r, 1 − low, 1 + high)A), r = π/π_old (Schulman et al. 2017, equation 7).

    `dual`: for A < 0 the surrogate is at least dual · A, dual > 1 (Ye et al. 2020, equation 5), so that an
    exploding ratio can't dominate the update.
    """
    ratio = torch.exp((log_prob - old).clamp(max=MAX_LOG_RATIO))
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual is not None:
        bounded = torch.maximum(surrogate, dual * advantage)
        surrogate = torch.where(advantage < 0, bounded, surrogate)
    return -surrogate


def value_loss(
    value: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, clip: float | None
) -> torch.Tensor:
    """½ max((V − R)², (clip(V, V_old ± ε) − R)²); without a clip ½ (V − R)²."""
    squared = (value - returns) ** 2
    if clip is not None:
        clipped = old + (value - old).clamp(-clip, clip)
        squared = torch.maximum(squared, (clipped - returns) ** 2)
    return squared / 2


def truncated_importance_weight(
    old: torch.Tensor, sampler: torch.Tensor, cap: float
) -> torch.Tensor:
    """min(π_old/μ, cap), without a gradient (Yao et al. 2025, "truncated importance sampling").

    Corrects for a sampler μ whose probabilities differ from the policy's at the start of the step.
    """
    return torch.exp((old - sampler).detach()).clamp(max=cap)


def aggregation_weights(name: str, mask_BT: torch.Tensor, max_tokens: int) -> torch.Tensor:
    """[B, T] Weights of the tokens' losses in their sum.

    With `aggregation_denominator` summed over all parts of a batch, Σ weight · loss / denominator is the
    mean over tokens (token_mean), the mean over answers of their means (sequence_mean), or Dr. GRPO's Σ
    loss / (answers · max_tokens) (constant_length). Answers that are masked entirely aren't counted.
    """
    if name == "sequence_mean":
        return mask_BT / mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    if name == "constant_length":
        return mask_BT / max_tokens
    if name == "token_mean":
        return mask_BT
    raise ValueError(f"{name!r} isn't an aggregation of losses")


def aggregation_denominator(name: str, mask_BT: torch.Tensor, max_tokens: int) -> float:
    """Return a part's share of the divisor of the summed losses; see `aggregation_weights`."""
    if name == "token_mean":
        return float(mask_BT.sum())
    if name in ("sequence_mean", "constant_length"):
        return float((mask_BT.sum(dim=1) > 0).sum())
    raise ValueError(f"{name!r} isn't an aggregation of losses")


@dataclass(frozen=True)
class AdaptiveKl:
    """KL coefficient that holds the KL at a target (Ziegler et al. 2019, section 2.2); fixed without one."""

    beta: float
    target: float | None
    horizon: int

    def updated(self, measured_kl: float, samples: int) -> AdaptiveKl:
        """β(1 + clip(KL/target − 1, ±0.2) · samples/horizon).

        Raises:
            NonFiniteError: the KL is NaN. The coefficient would become NaN, in all later checkpoints as well.
        """
        if self.target is None:
            return self
        if math.isnan(measured_kl):
            raise NonFiniteError(
                "the KL to the reference is NaN, so the KL coefficient can't be adapted "
                f"(now {self.beta}); look for log-probabilities of the policy, the sampler or the "
                "reference that aren't finite, or leave algorithm.kl_target out"
            )
        error = min(max(measured_kl / self.target - 1, -0.2), 0.2)
        return replace(self, beta=self.beta * (1 + error * samples / self.horizon))
