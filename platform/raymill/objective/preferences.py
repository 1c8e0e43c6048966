"""Losses of pairs of answers, from their scores or log-probabilities, one loss per pair (nothing is reduced).

Shapes: P pairs; the suffix `_w` marks the better answer (it won), `_l` the worse. Log-probabilities are summed
over the answer's tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class PairLogProbs:
    """Log-probabilities of pairs' answers, and the answers' lengths in tokens; [P] each."""

    policy_w: torch.Tensor
    policy_l: torch.Tensor
    reference_w: torch.Tensor
    reference_l: torch.Tensor
    length_w: torch.Tensor
    length_l: torch.Tensor

    @property
    def advantage(self) -> torch.Tensor:
        """[P] h = (log π_w − log π_ref,w) − (log π_l − log π_ref,l)."""
        return (self.policy_w - self.reference_w) - (self.policy_l - self.reference_l)


def dpo_loss(
    pairs: PairLogProbs, beta: float, label_smoothing: float, gamma: float
) -> torch.Tensor:
    """[P] −(1−ε) log σ(βh) − ε log σ(−βh): DPO (Rafailov et al. 2023, equation 7), with ε > 0 cDPO
    (Mitchell 2023). Where policy and reference are equal, it is ln 2."""
    scaled_P = beta * pairs.advantage
    right_P, wrong_P = F.logsigmoid(scaled_P), F.logsigmoid(-scaled_P)
    return -(1 - label_smoothing) * right_P - label_smoothing * wrong_P


def ipo_loss(
    pairs: PairLogProbs, beta: float, label_smoothing: float, gamma: float
) -> torch.Tensor:
    """[P] (h − 1/(2β))² (Azar et al. 2023, equation 17), h summed over tokens."""
    return (pairs.advantage - 1 / (2 * beta)) ** 2


def simpo_loss(
    pairs: PairLogProbs, beta: float, label_smoothing: float, gamma: float
) -> torch.Tensor:
    """[P] −log σ(β(log π_w/|w| − log π_l/|l|) − γ) (Meng et al. 2024, equation 6); no reference."""
    difference_P = pairs.policy_w / pairs.length_w - pairs.policy_l / pairs.length_l
    return -F.logsigmoid(beta * difference_P - gamma)


def orpo_loss(
    pairs: PairLogProbs, beta: float, label_smoothing: float, gamma: float
) -> torch.Tensor:
    """[P] −log π_w/|w| − β log σ(log odds_w − log odds_l), odds of the mean log-probability per token
    (Hong et al. 2024, equation 6); no reference."""
    mean_w_P, mean_l_P = pairs.policy_w / pairs.length_w, pairs.policy_l / pairs.length_l
    odds_P = log_odds(mean_w_P) - log_odds(mean_l_P)
    return -mean_w_P - beta * F.logsigmoid(odds_P)


def log_odds(log_prob: torch.Tensor) -> torch.Tensor:
    """Return log(p / (1 − p)) from log p, accurate for p near 0 and near 1 alike."""
    # Clamped because the odds of p = 1 are infinite.
    clamped = log_prob.clamp(max=-1e-7)
    near_one = clamped > -0.6931
    # log(1 − e^x) in two forms, each where it doesn't cancel (Mächler 2012).
    log_complement = torch.where(
        near_one,
        torch.log(-torch.expm1(torch.where(near_one, clamped, torch.full_like(clamped, -0.5)))),
        torch.log1p(-torch.exp(torch.where(near_one, torch.full_like(clamped, -1.0), clamped))),
    )
    return clamped - log_complement


PairLoss = Callable[[PairLogProbs, float, float, float], torch.Tensor]
LOSSES: dict[str, PairLoss] = {
    "dpo": dpo_loss,
    "ipo": ipo_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
}
NEEDS_REFERENCE = ("dpo", "ipo")


def bradley_terry_loss(
    chosen_P: torch.Tensor, rejected_P: torch.Tensor, margin_P: torch.Tensor, center_rewards: float
) -> torch.Tensor:
    """[P] −log σ(r_w − r_l − margin) + center_rewards · (r_w + r_l)².

    Bradley & Terry 1952; margin: Touvron et al. 2023 (Llama 2), equation 2; centering: Eisenstein et al. 2023.
    """
    loss_P = -F.logsigmoid(chosen_P - rejected_P - margin_P)
    return loss_P + center_rewards * (chosen_P + rejected_P) ** 2 if center_rewards else loss_P
