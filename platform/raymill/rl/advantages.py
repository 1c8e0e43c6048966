"""What each answer, or each of its tokens, gained over what was to be expected. Pure.

Shapes: B answers, G answers of a group (one prompt's), T response tokens. Masked-out tokens have no
advantage, and none of them changes another's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

EPSILON = 1e-6
AllReduce = Callable[[torch.Tensor], torch.Tensor]  # sums over ranks


def grpo(rewards_G: torch.Tensor) -> torch.Tensor:
    """[G] (R − mean) / (std + ε), std with ddof 1 (Shao et al. 2024, section 4.1); equal rewards give 0."""
    if len(rewards_G) < 2:
        return torch.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    if bool((rewards_G == rewards_G[0]).all()):  # rounding must not become an advantage
        return torch.zeros_like(rewards_G)
    return centred_G / (rewards_G.std(correction=1) + EPSILON)


def dr_grpo(rewards_G: torch.Tensor) -> torch.Tensor:
    """[G] R − mean (Liu et al. 2025): no division, which favours questions that are all easy or all hard."""
    if len(rewards_G) < 2 or bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    return rewards_G - rewards_G.mean()


def rloo(rewards_G: torch.Tensor) -> torch.Tensor:
    """[G] R_i − Σ_{j≠i} R_j / (G − 1) (Ahmadian et al. 2024, equation 8)."""
    count = len(rewards_G)
    if count < 2 or bool((rewards_G == rewards_G[0]).all()):
        return torch.zeros_like(rewards_G)
    return rewards_G - (rewards_G.sum() - rewards_G) / (count - 1)


OF_GROUPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce_pp_baseline": dr_grpo,  # whitening over the batch comes after
}


def place_reward(reward_B: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """[B, T] An answer's reward at the last of its tokens that counts; nothing where none does."""
    places_T = torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)
    last_B = (mask_BT * places_T).argmax(dim=1)
    placed_BT = torch.zeros(mask_BT.shape, dtype=reward_B.dtype, device=mask_BT.device)
    counts_B = mask_BT.sum(dim=1) > 0
    given_B = torch.where(counts_B, reward_B, torch.zeros_like(reward_B))
    return placed_BT.scatter(1, last_B[:, None], given_B[:, None])


def gae(
    rewards_BT: torch.Tensor,
    values_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    gamma: float,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """([B, T], [B, T]) Advantages and returns (Schulman et al. 2016, equation 16).

    δ_t = r_t + γV_{t+1} − V_t, A_t = δ_t + γλA_{t+1}, R = A + V, where t + 1 is the next token that
    counts. After the last there is nothing more, also for an answer that was cut off: its reward judges it
    as it stands, and a future besides would count it twice.
    """
    advantage_BT = torch.zeros_like(values_BT)
    ahead_B = torch.zeros_like(values_BT[:, 0])  # A of the next token that counts
    value_B = torch.zeros_like(ahead_B)  # and its V
    for t in reversed(range(values_BT.shape[1])):
        counts_B = mask_BT[:, t] > 0
        delta_B = rewards_BT[:, t] + gamma * value_B - values_BT[:, t]
        found_B = delta_B + gamma * lam * ahead_B
        advantage_BT[:, t] = torch.where(counts_B, found_B, torch.zeros_like(found_B))
        ahead_B = torch.where(counts_B, found_B, ahead_B)
        value_B = torch.where(counts_B, values_BT[:, t], value_B)
    returns_BT = torch.where(mask_BT > 0, advantage_BT + values_BT, torch.zeros_like(values_BT))
    return advantage_BT, returns_BT


def discounted(rewards_BT: torch.Tensor, mask_BT: torch.Tensor, gamma: float) -> torch.Tensor:
    """[B, T] Σ_{t' ≥ t} γ^(t'−t) r_{t'} over tokens that count (REINFORCE++: Hu 2025)."""
    zero_BT = torch.zeros_like(rewards_BT)
    return gae(rewards_BT, zero_BT, mask_BT, gamma, 1.0)[0]


def whitened(
    values_BT: torch.Tensor, mask_BT: torch.Tensor, all_reduce: AllReduce = lambda sums: sums
) -> torch.Tensor:
    """[B, T] (A − mean) / √(variance + ε) over the tokens that count on all ranks; 0 elsewhere.

    The variance is that of the tokens themselves (ddof 0). Collective where `all_reduce` is.
    """
    counted_BT = torch.where(mask_BT > 0, values_BT.double(), 0.0)
    count, total = all_reduce(torch.stack([mask_BT.double().sum(), counted_BT.sum()])).tolist()
    if not count:
        return torch.zeros_like(values_BT)
    mean = total / count
    centred_BT = (counted_BT - mean) * mask_BT
    [squares] = all_reduce((centred_BT**2).sum().reshape(1)).tolist()
    white_BT: torch.Tensor = centred_BT / float(squares / count + EPSILON) ** 0.5
    return white_BT.to(values_BT.dtype)
