"""From rewards of answers to advantages of their tokens, as the algorithm says.

Shapes: B answers in groups of G that stand together, T predictions (see `rollouts.py`).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from raymill.rl.advantages import (
    OF_GROUPS,
    AllReduce,
    discounted,
    gae,
    place_reward,
    whitened,
)
from raymill.rl.losses import kl
from raymill.rl.rollout_batch import RolloutBatch
from raymill.schema.sections import AlgorithmConfig


def compute_advantages(
    rollouts: RolloutBatch,
    rewards_B: torch.Tensor,
    stopped_B: torch.Tensor,
    group: int,
    algorithm: AlgorithmConfig,
    all_reduce: AllReduce,
) -> RolloutBatch:
    """The answers with their advantages (and returns, where there is a critic), and a mask of those that
    are learned from.

    A reward that is NaN drops its answer: it isn't learned from, nor compared with. `stopped_B`: whether
    an answer ended by itself. Collective where `all_reduce` is.
    """
    known_B = ~torch.isnan(rewards_B)
    learned_B = known_B.clone()
    if algorithm.overlong == "mask":
        learned_B &= stopped_B
    if algorithm.skip_equal_groups:
        learned_B &= _told_apart(rewards_B, group)
    mask_BT = rollouts.mask * learned_B[:, None]
    reward_B = torch.where(known_B, rewards_B, torch.zeros_like(rewards_B)).double()
    # What the reference costs is taken off the reward, token by token, or off the answer's as a whole.
    penalty_BT = torch.zeros(mask_BT.shape, dtype=torch.float64)
    if algorithm.kl == "reward":
        policy_BT = rollouts.sampler if rollouts.old is None else rollouts.old
        assert rollouts.reference is not None
        distance_BT = kl(algorithm.kl_estimator, policy_BT.double(), rollouts.reference.double())
        penalty_BT = rollouts.kl_coefficient * distance_BT * rollouts.mask
    returns_BT: torch.Tensor | None = None
    if algorithm.advantage in ("gae", "reinforce_pp", "reinforce_pp_baseline"):
        if algorithm.advantage == "reinforce_pp_baseline":
            reward_B = _by_group(reward_B, known_B, group, algorithm.advantage)
        tokens_BT = place_reward(reward_B, mask_BT) - penalty_BT
        if algorithm.advantage == "gae":
            assert rollouts.value is not None
            # An answer that was cut off was judged as it stands: nothing more is to come. To add what the
            # critic expects of its rest would count the reward twice, and the critic would run away.
            advantage_BT, returns_BT = gae(
                tokens_BT, rollouts.value.double(), mask_BT, algorithm.gamma, algorithm.gae_lambda
            )
        else:
            advantage_BT = discounted(tokens_BT, mask_BT, algorithm.gamma)
    else:
        reward_B = reward_B - penalty_BT.sum(dim=1)
        advantage_B = _by_group(reward_B, known_B, group, algorithm.advantage)
        advantage_BT = advantage_B[:, None] * mask_BT
    if algorithm.whiten:
        advantage_BT = whitened(advantage_BT, mask_BT, all_reduce)
    return replace(
        rollouts,
        mask=mask_BT,
        advantage=advantage_BT.float(),
        returns=None if returns_BT is None else returns_BT.float(),
    )


def _by_group(
    reward_B: torch.Tensor, known_B: torch.Tensor, group: int, advantage: str
) -> torch.Tensor:
    """[B] Each answer against the others of its group that have a reward; 0 for those that have none."""
    found_B = torch.zeros_like(reward_B)
    for first in range(0, len(reward_B), group):
        known = known_B[first : first + group].nonzero()[:, 0] + first
        if len(known):
            found_B[known] = OF_GROUPS[advantage](reward_B[known])
    return found_B


def _told_apart(rewards_B: torch.Tensor, group: int) -> torch.Tensor:
    """[B] Whether an answer's group has two different rewards."""
    rewards_PG = rewards_B.view(-1, group)
    low_P = rewards_PG.nan_to_num(nan=float("inf")).amin(dim=1)
    high_P = rewards_PG.nan_to_num(nan=float("-inf")).amax(dim=1)
    return (low_P < high_P).repeat_interleave(group)
