"""Advantages against their definitions, written out in numpy over the tokens that count alone."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.rl.advantages import (
    EPSILON,
    GROUP_ADVANTAGES,
    compute_advantages,
    discounted,
    dr_grpo,
    gae,
    grpo,
    place_reward,
    rloo,
    whitened,
)
from raymill.rl.rollout_batch import RolloutBatch
from raymill.schema.sections import AlgorithmConfig
from sections import plain

UNHURRIED = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)
FRACTIONS = st.floats(0, 1)
REWARDS = st.lists(st.floats(-100, 100), min_size=2, max_size=9)


def some_answers(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, values and a mask [B, T]: gaps anywhere, whole rows without a token among them."""
    random = np.random.default_rng(seed)
    shape = (random.integers(1, 5), random.integers(1, 10))
    mask = (random.random(shape) < random.choice([0.3, 0.7, 1.0])).astype(np.float64)
    return tuple(torch.from_numpy(x) for x in (*random.normal(0, 2, (2, *shape)), mask))  # type: ignore[return-value]


def row_by_row(
    mask_BT: torch.Tensor, of_row: Callable[[np.ndarray, int], list[float]]
) -> torch.Tensor:
    """[B, T] What `of_row` says of the columns that count of each row; 0 elsewhere."""
    found_BT = torch.zeros(mask_BT.shape, dtype=torch.float64)
    for row in range(len(mask_BT)):
        [columns] = np.nonzero(mask_BT[row].numpy())
        for column, value in zip(columns, of_row(columns, row), strict=True):
            found_BT[row, column] = value
    return found_BT


def by_definition(
    rewards_BT: torch.Tensor,
    values_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    gamma: float,
    lam: float,
) -> torch.Tensor:
    """A_t = Σ_{k ≥ t} (γλ)^(k−t) δ_k, every sum on its own."""

    def of_row(columns: np.ndarray, row: int) -> list[float]:
        r, v = rewards_BT[row].numpy()[columns], values_BT[row].numpy()[columns]
        after = [*v[1:], 0.0]
        return [
            sum(
                (gamma * lam) ** (k - t) * (r[k] + gamma * after[k] - v[k])
                for k in range(t, len(columns))
            )
            for t in range(len(columns))
        ]

    return row_by_row(mask_BT, of_row)


@UNHURRIED
@given(seed=SEEDS, gamma=FRACTIONS, lam=FRACTIONS)
def test_gae_is_the_sum_of_discounted_errors(seed: int, gamma: float, lam: float) -> None:
    rewards_BT, values_BT, mask_BT = some_answers(seed)
    advantage_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma, lam)
    expected_BT = by_definition(rewards_BT, values_BT, mask_BT, gamma, lam)
    torch.testing.assert_close(advantage_BT, expected_BT)
    torch.testing.assert_close(returns_BT, expected_BT + values_BT * mask_BT)


@UNHURRIED
@given(seed=SEEDS, gamma=FRACTIONS)
def test_the_two_ends_of_lambda(seed: int, gamma: float) -> None:
    rewards_BT, values_BT, mask_BT = some_answers(seed)
    long_BT, returns_BT = gae(rewards_BT, values_BT, mask_BT, gamma, 1.0)
    return_BT = discounted(rewards_BT, mask_BT, gamma)
    torch.testing.assert_close(long_BT, (return_BT - values_BT) * mask_BT)
    torch.testing.assert_close(returns_BT, return_BT)
    short_BT, _ = gae(rewards_BT, values_BT, mask_BT, gamma, 0.0)

    def errors(columns: np.ndarray, row: int) -> list[float]:
        r, v = rewards_BT[row].numpy()[columns], values_BT[row].numpy()[columns]
        return list(r + gamma * np.append(v[1:], 0.0)[: len(v)] - v)

    torch.testing.assert_close(short_BT, row_by_row(mask_BT, errors))


@UNHURRIED
@given(seed=SEEDS)
def test_what_does_not_count_changes_nothing(seed: int) -> None:
    """Columns put in anywhere, with anything in them; and the order of answers."""
    answers = some_answers(seed)
    mask_BT = answers[2]
    count, width = mask_BT.shape
    random = np.random.default_rng(seed)
    at_T = np.sort(random.permutation(width + 4)[:width])

    def spread(values_BT: torch.Tensor, filling: float) -> torch.Tensor:
        wide_BT = torch.full((count, width + 4), filling, dtype=values_BT.dtype)
        wide_BT[:, at_T] = torch.where(mask_BT > 0, values_BT, filling)
        return wide_BT

    def all_of(rewards_BT: torch.Tensor, values_BT: torch.Tensor, mask_BT: torch.Tensor) -> list:
        given = (rewards_BT, values_BT, mask_BT)
        last_BT = place_reward(torch.arange(1.0, count + 1), mask_BT).double()
        whole_BT = discounted(rewards_BT, mask_BT, 0.9)
        return [*gae(*given, 0.9, 0.8), whole_BT, whitened(values_BT, mask_BT), last_BT]

    plain = all_of(*answers)
    wide = all_of(spread(answers[0], np.nan), spread(answers[1], np.inf), spread(mask_BT, 0.0))
    for narrow_BT, wide_BT in zip(plain, wide, strict=True):
        torch.testing.assert_close(wide_BT[:, at_T], narrow_BT)
        assert (wide_BT.sum() - narrow_BT.sum()).abs() < 1e-9, "nothing where nothing counts"
    order = torch.from_numpy(random.permutation(count))
    for before_BT, after_BT in zip(plain[:4], all_of(*(x[order] for x in answers)), strict=False):
        torch.testing.assert_close(after_BT, before_BT[order])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
def test_the_reward_is_at_the_last_token_that_counts(dtype: torch.dtype) -> None:
    mask_BT = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 0]]).to(dtype)
    placed_BT = place_reward(torch.tensor([2.0, -3.0, float("nan"), 0.5]), mask_BT)
    expected = [[0, 0, 2.0, 0], [0, 0, 0, -3.0], [0, 0, 0, 0], [0, 0, 0.5, 0]]
    assert placed_BT.tolist() == expected


def by_name(name: str, rewards: list[float]) -> list[float]:
    mean = sum(rewards) / len(rewards)
    if name == "grpo":
        spread = statistics.stdev(rewards)  # ddof 1
        return [(r - mean) / (spread + EPSILON) for r in rewards]
    if name == "rloo":
        others = [rewards[:i] + rewards[i + 1 :] for i in range(len(rewards))]
        return [r - sum(o) / len(o) for r, o in zip(rewards, others, strict=True)]
    return [r - mean for r in rewards]


@pytest.mark.parametrize("name", sorted(GROUP_ADVANTAGES))
@UNHURRIED
@given(rewards=REWARDS, shift=st.floats(-10, 10))
def test_groups(name: str, rewards: list[float], shift: float) -> None:
    rewards_G = torch.tensor(rewards, dtype=torch.float64)
    found_G = GROUP_ADVANTAGES[name](rewards_G)
    expected_G = torch.tensor(by_name(name, rewards), dtype=torch.float64)
    # What differs by less than doubles can tell is divided by ε: 1e-14/1e-6.
    torch.testing.assert_close(found_G, expected_G, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        GROUP_ADVANTAGES[name](rewards_G.flip(0)), found_G.flip(0), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        GROUP_ADVANTAGES[name](rewards_G + shift), found_G, atol=1e-6, rtol=1e-6
    )
    assert abs(found_G.sum().item()) < 1e-6


@pytest.mark.parametrize("name", sorted(GROUP_ADVANTAGES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(reward=st.floats(-1e3, 1e3, width=32), count=st.integers(1, 9))
@UNHURRIED
def test_equal_rewards_teach_nothing(
    name: str, dtype: torch.dtype, reward: float, count: int
) -> None:
    """Exactly: 0.1 + 0.1 + 0.1 isn't 0.3, and the rest divided by ε would be an advantage."""
    for value in (reward, 0.1):
        assert not GROUP_ADVANTAGES[name](torch.full((count,), value, dtype=dtype)).any()


def test_how_the_estimators_relate() -> None:
    rewards_G = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(rloo(rewards_G), dr_grpo(rewards_G) * 8 / 7)
    torch.testing.assert_close(grpo(rewards_G) * (rewards_G.std() + EPSILON), dr_grpo(rewards_G))
    torch.testing.assert_close(grpo(rewards_G * 50), grpo(rewards_G), rtol=1e-5, atol=0)


def test_trl_divides_by_the_same_deviation() -> None:
    utils = pytest.importorskip("trl.trainer.utils", reason="TRL is in the dev extra")
    rewards_PG = torch.rand(5, 6, dtype=torch.float64)
    theirs_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    theirs_PG = theirs_PG / (utils.nanstd(rewards_PG, dim=1, keepdim=True) + EPSILON)
    torch.testing.assert_close(torch.stack([grpo(row_G) for row_G in rewards_PG]), theirs_PG)


@UNHURRIED
@given(seed=SEEDS, gamma=FRACTIONS)
def test_discounted_is_the_sum_of_what_follows(seed: int, gamma: float) -> None:
    rewards_BT, _, mask_BT = some_answers(seed)

    def of_row(columns: np.ndarray, row: int) -> list[float]:
        r = rewards_BT[row].numpy()[columns]
        return [sum(gamma ** (k - t) * r[k] for k in range(t, len(r))) for t in range(len(r))]

    torch.testing.assert_close(discounted(rewards_BT, mask_BT, gamma), row_by_row(mask_BT, of_row))


@pytest.mark.parametrize("name", ["reinforce_pp", "reinforce_pp_baseline"])
@UNHURRIED
@given(seed=SEEDS, gamma=FRACTIONS, beta=FRACTIONS)
def test_reinforce_plus_plus(name: str, seed: int, gamma: float, beta: float) -> None:
    """Σ_{t' ≥ t} γ^(t'−t) (r_t' − β k1_t'), the group's mean taken off r first or not, whitened."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 7, 6)
    reward = random.normal(0, 1, 6)
    policy, reference = random.uniform(-3, 0, (2, 6, 8)).astype(np.float32)
    rollouts = RolloutBatch.from_columns(
        [[1, 2]] * 6,
        [[3] * size for size in sizes],
        [policy[row, : sizes[row]].tolist() for row in range(6)],
    )
    reference_BT = torch.zeros_like(rollouts.sampler)
    expected_BT = torch.zeros(rollouts.mask.shape, dtype=torch.float64)
    for row, size in enumerate(sizes):
        reference_BT[row, 1 : 1 + size] = torch.from_numpy(reference[row, :size])
        group = reward[row // 3 * 3 : row // 3 * 3 + 3]
        own = reward[row] - (group.mean() if name == "reinforce_pp_baseline" else 0.0)
        per_token = -beta * (policy[row, :size].astype(float) - reference[row, :size])
        per_token[-1] += own
        for t in range(size):
            expected_BT[row, 1 + t] = sum(gamma ** (k - t) * per_token[k] for k in range(t, size))
    flat = expected_BT[rollouts.mask > 0].numpy()
    expected_BT = (expected_BT - flat.mean()) / np.sqrt(flat.var() + EPSILON) * rollouts.mask

    algorithm = plain(
        AlgorithmConfig,
        "reinforce_pp",
        name,
        kl="reward",
        kl_estimator="k1",
        gamma=gamma,
        whiten=True,
    )
    found = compute_advantages(
        RolloutBatch(
            rollouts.tokens, rollouts.length, rollouts.mask, rollouts.sampler,
            reference=reference_BT, kl_coefficient=beta,
        ),
        torch.from_numpy(reward), torch.ones(6, dtype=torch.bool), 3, algorithm, lambda sums: sums,
    )  # fmt: skip
    assert found.advantage is not None
    torch.testing.assert_close(found.advantage.double(), expected_BT, rtol=1e-4, atol=1e-4)


@UNHURRIED
@given(seed=SEEDS)
def test_whitening_is_of_all_that_counts(seed: int) -> None:
    _, values_BT, mask_BT = some_answers(seed)
    flat = values_BT[mask_BT > 0].numpy()
    white_BT = whitened(values_BT, mask_BT)
    if not len(flat):
        assert not white_BT.any()
        return
    expected = (flat - flat.mean()) / np.sqrt(flat.var() + EPSILON)
    torch.testing.assert_close(white_BT[mask_BT > 0], torch.from_numpy(expected))
    assert not white_BT[mask_BT == 0].any()


def on_ranks(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """Each part whitened by a thread of its own, with sums over all."""
    barrier, posted = threading.Barrier(len(parts), timeout=30), [torch.zeros(0)] * len(parts)

    def run(rank: int) -> torch.Tensor:
        def all_reduce(sums: torch.Tensor) -> torch.Tensor:
            posted[rank] = sums
            barrier.wait()
            total = torch.stack(list(posted)).sum(dim=0)
            barrier.wait()
            return total

        return whitened(*parts[rank], all_reduce)

    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(run, range(len(parts))))


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_ranks_whiten_as_one(seed: int) -> None:
    """Any distribution of the answers over ranks gives the same; a rank with masked answers takes part."""
    generator = torch.Generator().manual_seed(seed)
    values_BT = torch.randn(6, 5, generator=generator) * 3 + 7
    mask_BT = (torch.rand(6, 5, generator=generator) < 0.7).float()
    mask_BT[5] = 0
    # The first rank's answer lies far from the others' and is counted whole, so that its own mean never is the
    # batch's.
    values_BT[0] += 20
    mask_BT[0] = 1
    cuts = (slice(0, 1), slice(1, 5), slice(5, 6))
    shared = on_ranks([(values_BT[cut], mask_BT[cut]) for cut in cuts])
    torch.testing.assert_close(torch.cat(shared), whitened(values_BT, mask_BT))
    alone = torch.cat([whitened(values_BT[cut], mask_BT[cut]) for cut in cuts])
    assert not torch.allclose(alone, torch.cat(shared), atol=1e-2), "this is what must not be done"


def test_equal_advantages_whiten_to_nothing() -> None:
    values_BT = torch.full((3, 4), 0.1)
    assert whitened(values_BT, torch.ones(3, 4)).abs().max() < 1e-6
    assert not whitened(values_BT, torch.zeros(3, 4)).any()
