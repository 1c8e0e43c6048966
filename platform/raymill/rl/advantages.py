"""Advantages of answers and of their tokens, computed from the answers' rewards. Pure.

Shapes: B answers in groups of G (the answers to one prompt, adjacent), T response tokens. Masked-out tokens
have no advantage, and none of them changes another's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from raymill.rl.losses import kl
from raymill.rl.rollout_batch import RolloutBatch
from raymill.schema.sections import AlgorithmConfig

EPSILON = 1e-6
# Sums a tensor over ranks.
AllReduce = Callable[[torch.Tensor], torch.Tensor]


def compute_advantages(
    rollouts: RolloutBatch,
    rewards_B: torch.Tensor,
    stopped_B: torch.Tensor,
    group_size: int,
    algorithm: AlgorithmConfig,
    all_reduce: AllReduce,
) -> RolloutBatch:
    """Return the answers with token advantages, returns (for a critic), and a mask of the answers learned from.

    An answer whose reward is NaN is dropped: it isn't learned from, nor compared with others. `stopped_B`:
    whether an answer ended by itself. Collective if `all_reduce` is.
    """
    known_B = ~torch.isnan(rewards_B)
    learned_B = known_B.clone()
    if algorithm.overlong == "mask":
        learned_B &= stopped_B
    if algorithm.skip_equal_groups:
        learned_B &= _in_unequal_group(rewards_B, group_size)
    mask_BT = rollouts.mask * learned_B[:, None]
    reward_B = torch.where(known_B, rewards_B, torch.zeros_like(rewards_B)).double()
    # The distance to the reference is subtracted token by token, or as a sum from the answer's reward.
    penalty_BT = torch.zeros(mask_BT.shape, dtype=torch.float64)
    if algorithm.kl == "reward":
        policy_BT = rollouts.sampler if rollouts.old is None else rollouts.old
        assert rollouts.reference is not None, (
            "a KL penalty needs the reference's log-probabilities"
        )
        distance_BT = kl(algorithm.kl_estimator, policy_BT.double(), rollouts.reference.double())
        penalty_BT = rollouts.kl_coefficient * distance_BT * rollouts.mask
    returns_BT: torch.Tensor | None = None
    if algorithm.advantage in ("gae", "reinforce_pp", "reinforce_pp_baseline"):
        if algorithm.advantage == "reinforce_pp_baseline":
            reward_B = _group_advantages(reward_B, known_B, group_size, algorithm.advantage)
        tokens_BT = place_reward(reward_B, mask_BT) - penalty_BT
        if algorithm.advantage == "gae":
            assert rollouts.value is not None, "generalized advantages need a critic's values"
            # A truncated answer was rewarded as it stands, so nothing follows its last token. Adding the
            # critic's estimate of a continuation would count the reward twice, and the critic's values
            # would diverge.
            advantage_BT, returns_BT = gae(
                tokens_BT, rollouts.value.double(), mask_BT, algorithm.gamma, algorithm.gae_lambda
            )
        else:
            advantage_BT = discounted(tokens_BT, mask_BT, algorithm.gamma)
    else:
        reward_B = reward_B - penalty_BT.sum(dim=1)
        advantage_B = _group_advantages(reward_B, known_B, group_size, algorithm.advantage)
        advantage_BT = advantage_B[:, None] * mask_BT
    if algorithm.whiten:
        advantage_BT = whitened(advantage_BT, mask_BT, all_reduce)
    return replace(
        rollouts,
        mask=mask_BT,
        advantage=advantage_BT.float(),
        returns=None if returns_BT is None else returns_BT.float(),
    )


def _group_advantages(
    reward_B: torch.Tensor, known_B: torch.Tensor, group_size: int, advantage: str
) -> torch.Tensor:
    """[B] Advantage of each answer over those of its group that have a reward; 0 for answers without one."""
    advantage_B = torch.zeros_like(reward_B)
    for first in range(0, len(reward_B), group_size):
        known = known_B[first : first + group_size].nonzero()[:, 0] + first
        if len(known):
            advantage_B[known] = GROUP_ADVANTAGES[advantage](reward_B[known])
    return advantage_B


def _in_unequal_group(rewards_B: torch.Tensor, group_size: int) -> torch.Tensor:
    """[B] True for the answers of groups with at least two different rewards."""
    rewards_PG = rewards_B.view(-1, group_size)
    low_P = rewards_PG.nan_to_num(nan=float("inf")).amin(dim=1)
    high_P = rewards_PG.nan_to_num(nan=float("-inf")).amax(dim=1)
    return (low_P < high_P).repeat_interleave(group_size)


def grpo(rewards_G: torch.Tensor) -> torch.Tensor:
    """[G] (R − mean) / (std + ε), std with ddof 1 (Shao et al. 2024, section 4.1); equal rewards give 0."""
    if len(rewards_G) < 2:
        return torch.zeros_like(rewards_G)
    centered_G = rewards_G - rewards_G.mean()
    # Equal rewards give exactly 0; the rounding error of their mean must not become an advantage.
    if bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    return centered_G / (rewards_G.std(correction=1) + EPSILON)


def dr_grpo(rewards_G: torch.Tensor) -> torch.Tensor:
    """[G] R − mean (Liu et al. 2025), without GRPO's division, which favors questions all easy or all hard."""
    if len(rewards_G) < 2 or bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    return rewards_G - rewards_G.mean()


def rloo(rewards_G: torch.Tensor) -> torch.Tensor:
    """[G] R_i − Σ_{j≠i} R_j / (G − 1) (Ahmadian et al. 2024, equation 8)."""
    count = len(rewards_G)
    if count < 2 or bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    return rewards_G - (rewards_G.sum() - rewards_G) / (count - 1)


GROUP_ADVANTAGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    # Whitening over the batch follows.
    "reinforce_pp_baseline": dr_grpo,
}


def place_reward(reward_B: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """[B, T] Each answer's reward at its last unmasked token; nothing for answers that are masked entirely."""
    number_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    last_B = (mask_BT * number_T).argmax(dim=1)
    placed_BT = torch.zeros(mask_BT.shape, dtype=reward_B.dtype, device=mask_BT.device)
    unmasked_B = mask_BT.sum(dim=1) > 0
    reward_B = torch.where(unmasked_B, reward_B, torch.zeros_like(reward_B))
    return placed_BT.scatter(1, last_B[:, None], reward_B[:, None])


def gae(
    rewards_BT: torch.Tensor,
    values_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """([B, T], [B, T]) Advantages and returns (Schulman et al. 2016, equation 16).

    δ_t = r_t + γV_{t+1} − V_t, A_t = δ_t + γλA_{t+1}, R = A + V, where t + 1 is the next unmasked token.
    After the last token, A and V are 0, also for a truncated answer: its reward already judges it as it
    stands.
    """
    advantage_BT = torch.zeros_like(values_BT)
    # A and V of the next unmasked token.
    next_advantage_B = torch.zeros_like(values_BT[:, 0])
    next_value_B = torch.zeros_like(next_advantage_B)
    for t in reversed(range(values_BT.shape[1])):
        unmasked_B = mask_BT[:, t] > 0
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        advantage_B = delta_B + gamma * gae_lambda * next_advantage_B
        advantage_BT[:, t] = torch.where(unmasked_B, advantage_B, torch.zeros_like(advantage_B))
        next_advantage_B = torch.where(unmasked_B, advantage_B, next_advantage_B)
        next_value_B = torch.where(unmasked_B, values_BT[:, t], next_value_B)
    returns_BT = torch.where(mask_BT > 0, advantage_BT + values_BT, torch.zeros_like(values_BT))
    return advantage_BT, returns_BT


def discounted(rewards_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float) -> torch.Tensor:
    """[B, T] Σ_{t' ≥ t} γ^(t'−t) r_{t'} over unmasked tokens (REINFORCE++: Hu 2025)."""
    zero_BT = torch.zeros_like(rewards_BT)
    return gae(rewards_BT, zero_BT, mask_BT, gamma, 1.0)[0]


def whitened(
    values_BT: torch.Tensor, mask_BT: torch.Tensor, all_reduce: AllReduce = lambda sums: sums
) -> torch.Tensor:
    """[B, T] (A − mean) / √(variance + ε) over the unmasked tokens of all ranks; 0 elsewhere.

    The variance has ddof 0. Collective if `all_reduce` is.
    """
    unmasked_BT = torch.where(mask_BT > 0, values_BT.double(), 0.0)
    count, total = all_reduce(torch.stack([mask_BT.double().sum(), unmasked_BT.sum()])).tolist()
    if not count:
        return torch.zeros_like(values_BT)
    mean = total / count
    centered_BT = (unmasked_BT - mean) * mask_BT
    [squares] = all_reduce((centered_BT**2).sum().reshape(1)).tolist()
    white_BT: torch.Tensor = centered_BT / float(squares / count + EPSILON) ** 0.5
    return white_BT.to(values_BT.dtype)
