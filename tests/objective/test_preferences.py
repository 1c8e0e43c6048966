"""Losses of pairs against the formulas written out with Python's floats, and against TRL's."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import fields, replace
from decimal import Decimal, localcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.objective.preferences import (
    LOSSES,
    NEEDS_REFERENCE,
    PairLogProbs,
    bradley_terry_loss,
    log_odds,
)

UNHURRIED = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)
BETAS = st.floats(0.01, 2.0)


def some_pairs(seed: int, count: int = 5, dtype: torch.dtype = torch.float64) -> PairLogProbs:
    """Summed log-probabilities of answers of 1 to 40 tokens, of -3 to 0 each."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 41, (2, count))
    sums = [-random.uniform(0.02, 3.0, count) * lengths[side] for side in (0, 1, 0, 1)]
    return PairLogProbs(
        *(torch.tensor(values, dtype=dtype) for values in sums),
        *(torch.tensor(length) for length in lengths),
    )


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def expected(name: str, pairs: PairLogProbs, beta: float, smooth: float, gamma: float) -> Any:
    """The definitions, pair by pair."""
    found = []
    for row in zip(*(getattr(pairs, f.name).tolist() for f in fields(pairs)), strict=True):
        policy_w, policy_l, reference_w, reference_l, length_w, length_l = row
        h = (policy_w - reference_w) - (policy_l - reference_l)
        mean_w, mean_l = policy_w / length_w, policy_l / length_l
        if name == "dpo":
            loss = -(1 - smooth) * log_sigmoid(beta * h) - smooth * log_sigmoid(-beta * h)
        elif name == "ipo":
            loss = (h - 1 / (2 * beta)) ** 2
        elif name == "simpo":
            loss = -log_sigmoid(beta * mean_w - beta * mean_l - gamma)
        else:
            p_w, p_l = math.exp(mean_w), math.exp(mean_l)
            ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
            loss = -mean_w - beta * math.log(1 / (1 + 1 / ratio))
        found.append(loss)
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("name", sorted(LOSSES))
@UNHURRIED
@given(seed=SEEDS, beta=BETAS, smooth=st.floats(0, 0.49), gamma=st.floats(0, 3))
def test_each_loss_is_its_definition(
    name: str, seed: int, beta: float, smooth: float, gamma: float
) -> None:
    pairs = some_pairs(seed)
    loss_P = LOSSES[name](pairs, beta, smooth, gamma)
    torch.testing.assert_close(loss_P, expected(name, pairs, beta, smooth, gamma))
    single = LOSSES[name](some_pairs(seed, dtype=torch.float32), beta, smooth, gamma)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), loss_P, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients(name: str) -> None:
    pairs = some_pairs(3)

    def loss(policy_w: torch.Tensor, policy_l: torch.Tensor) -> torch.Tensor:
        return LOSSES[name](replace(pairs, policy_w=policy_w, policy_l=policy_l), 0.3, 0.1, 0.5)

    inputs = (pairs.policy_w.requires_grad_(), pairs.policy_l.requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_pairs_do_not_see_each_other(name: str) -> None:
    pairs = some_pairs(4, 7)
    order = torch.randperm(7)
    mixed = PairLogProbs(*(getattr(pairs, f.name)[order] for f in fields(pairs)))
    first = PairLogProbs(*(getattr(pairs, f.name)[:3] for f in fields(pairs)))
    whole_P = LOSSES[name](pairs, 0.2, 0.1, 0.5)
    assert torch.equal(LOSSES[name](mixed, 0.2, 0.1, 0.5), whole_P[order])
    assert torch.equal(LOSSES[name](first, 0.2, 0.1, 0.5), whole_P[:3])


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_only_those_that_say_so_look_at_the_reference(name: str) -> None:
    pairs = some_pairs(5)
    other = replace(pairs, reference_w=pairs.reference_w - 1)
    same = torch.equal(LOSSES[name](pairs, 0.2, 0, 0.5), LOSSES[name](other, 0.2, 0, 0.5))
    assert same == (name not in NEEDS_REFERENCE)


@UNHURRIED
@given(seed=SEEDS, beta=BETAS, smooth=st.floats(0, 0.49))
def test_dpo_starts_at_ln_2(seed: int, beta: float, smooth: float) -> None:
    pairs = some_pairs(seed, dtype=torch.float32)
    same = replace(pairs, reference_w=pairs.policy_w, reference_l=pairs.policy_l)
    loss_P = LOSSES["dpo"](same, beta, smooth, 0.0)
    assert (loss_P - math.log(2)).abs().max() < 1e-6


def with_advantage(h: torch.Tensor) -> PairLogProbs:
    zero, one = torch.zeros_like(h), torch.ones_like(h)
    return PairLogProbs(h, zero, zero, zero, one, one)


def test_where_the_losses_rest() -> None:
    """cDPO where σ(βh) = 1 − ε, IPO at h = 1/(2β); DPO never, but less and less."""
    beta, smooth = 0.25, 0.1
    rest = {"dpo": math.log((1 - smooth) / smooth) / beta, "ipo": 1 / (2 * beta)}
    for name, h in rest.items():
        for step, sign in ((-0.5, -1.0), (0.0, 0.0), (0.5, 1.0)):
            h_P = torch.tensor([h + step], dtype=torch.float64, requires_grad=True)
            LOSSES[name](with_advantage(h_P), beta, smooth, 0.0).sum().backward()
            assert h_P.grad is not None
            assert (h_P.grad.item() > 1e-9) - (h_P.grad.item() < -1e-9) == sign


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_extreme_advantages_stay_finite(name: str) -> None:
    h_P = torch.tensor([-1e6, -200.0, 0.0, 200.0, 1e6], requires_grad=True)
    loss_P = LOSSES[name](with_advantage(h_P), 1.0, 0.0, 0.0)
    loss_P.sum().backward()
    assert loss_P.tolist() == pytest.approx([1e6, 200.0, math.log(2), 0.0, 0.0])
    assert h_P.grad is not None
    assert h_P.grad.tolist() == pytest.approx([-1.0, -1.0, -0.5, 0.0, 0.0])


def test_log_odds_are_exact_from_end_to_end() -> None:
    x_N = -torch.logspace(-6.9, 2, 400)  # p from 1 − 10^-7 to e^-100
    exact = []
    with localcontext() as context:
        context.prec = 60
        for x in x_N.tolist():
            p = Decimal(x).exp()
            exact.append(float((p / (1 - p)).ln()))
    error_N = (log_odds(x_N).double() - torch.tensor(exact)).abs()
    assert (error_N / (1 + torch.tensor(exact).abs())).max() < 3e-7


def test_odds_of_a_certain_answer_are_finite_and_so_is_their_gradient() -> None:
    x_N = torch.tensor([0.0, -1e-12, -1e-8, -0.6931, -0.6932, -1e4], requires_grad=True)
    odds_N = log_odds(x_N)
    odds_N.sum().backward()
    assert x_N.grad is not None and torch.isfinite(x_N.grad).all()
    assert torch.isfinite(odds_N).all() and odds_N[3].item() == pytest.approx(0, abs=1e-3)


@UNHURRIED
@given(seed=SEEDS, center_rewards=st.floats(0, 0.1))
def test_bradley_terry(seed: int, center_rewards: float) -> None:
    random = np.random.default_rng(seed)
    chosen, rejected, margin = random.normal(0, 3, (3, 6))
    loss_P = bradley_terry_loss(
        torch.tensor(chosen), torch.tensor(rejected), torch.tensor(margin), center_rewards
    )
    for loss, better, worse, m in zip(loss_P.tolist(), chosen, rejected, margin, strict=True):
        probability = math.exp(better) / (math.exp(better) + math.exp(worse + m))
        assert loss == pytest.approx(
            -math.log(probability) + center_rewards * (better + worse) ** 2
        )


# --- against TRL -------------------------------------------------------------------------------------


def stand_in(**more: Any) -> SimpleNamespace:
    """Return the parts of a trainer that TRL's loss methods use."""
    same = lambda tensor: tensor  # noqa: E731
    accelerator = SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same)
    metrics = {"train": defaultdict(list)}
    model = SimpleNamespace(training=True)
    counts = {"_total_train_tokens": 0, "_tp_size": 1}
    return SimpleNamespace(accelerator=accelerator, model=model, _metrics=metrics, **counts, **more)


def of_tokens(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """([2P, S-1], [2P, S-1], [2P, S]) Token log-probabilities of policy and reference, and a mask."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 12, 2 * count)
    mask_BS = torch.from_numpy((np.arange(14) < lengths[:, None] + 2).astype(np.int64))
    mask_BS[:, :2] = 0  # the prompt
    policy_BT, reference_BT = torch.from_numpy(-random.uniform(0.1, 3, (2, 2 * count, 13)))
    return policy_BT * mask_BS[:, 1:], reference_BT * mask_BS[:, 1:], mask_BS


def by_trl_dpo(
    loss: str,
    policy_BT: torch.Tensor,
    reference_BT: torch.Tensor,
    mask_BS: torch.Tensor,
    **more: Any,
) -> torch.Tensor:
    trainer = pytest.importorskip("trl.trainer.dpo_trainer", reason="TRL is in the dev extra")
    other = torch.zeros_like(policy_BT)
    outputs = SimpleNamespace(
        log_probs=policy_BT, entropy=other, mean_logits=other, is_top1=other.bool()
    )
    chosen_P, rejected_P = reference_BT.sum(dim=1).chunk(2)
    inputs = {
        "input_ids": torch.ones_like(mask_BS), "attention_mask": torch.ones_like(mask_BS),
        "completion_mask": mask_BS, "ref_chosen_logps": chosen_P, "ref_rejected_logps": rejected_P,
    }  # fmt: skip
    itself = stand_in(
        aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, loss_types=[loss],
        loss_weights=[1.0], f_divergence_type="reverse_kl", use_weighting=False, **more,
    )  # fmt: skip
    return trainer.DPOTrainer._compute_loss(itself, lambda **_: outputs, inputs, False)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["sigmoid", "aot", "ipo"])
def test_trl_dpo(name: str, seed: int) -> None:
    """TRL's aot on a single pair is cDPO. Its IPO averages over tokens, where ours sums: so ours is given
    averages."""
    beta, smooth = 0.3, 0.15
    policy_BT, reference_BT, mask_BS = of_tokens(seed, 1)
    policy_BT.requires_grad_()
    theirs = by_trl_dpo(name, policy_BT, reference_BT, mask_BS, beta=beta, label_smoothing=smooth)
    [their_gradient] = torch.autograd.grad(theirs, policy_BT)

    length_B = mask_BS.sum(dim=1)
    policy_B, reference_B = policy_BT.sum(dim=1), reference_BT.sum(dim=1)
    if name == "ipo":
        policy_B, reference_B = policy_B / length_B, reference_B / length_B
    pairs = PairLogProbs(*policy_B.chunk(2), *reference_B.chunk(2), *length_B.chunk(2))
    ours_P = LOSSES["ipo" if name == "ipo" else "dpo"](
        pairs, beta, smooth if name == "aot" else 0.0, 0.0
    )
    [our_gradient] = torch.autograd.grad(ours_P.sum(), policy_BT)
    torch.testing.assert_close(ours_P.sum(), theirs)
    torch.testing.assert_close(our_gradient, their_gradient)


def test_ipo_of_answers_of_one_length_is_trls_rescaled() -> None:
    """h summed over n tokens, and β/n for β: n² times TRL's."""
    policy_BT, reference_BT, mask_BS = of_tokens(9, 1)
    mask_BS[:] = mask_BS[:1]
    policy_BT, reference_BT = policy_BT * mask_BS[:, 1:], reference_BT * mask_BS[:, 1:]
    length = int(mask_BS[0].sum())
    theirs = by_trl_dpo("ipo", policy_BT, reference_BT, mask_BS, beta=0.2, label_smoothing=0.0)
    pairs = PairLogProbs(
        *policy_BT.sum(dim=1).chunk(2),
        *reference_BT.sum(dim=1).chunk(2),
        *mask_BS.sum(dim=1).chunk(2),
    )
    ours_P = LOSSES["ipo"](pairs, 0.2 / length, 0.0, 0.0)
    torch.testing.assert_close(ours_P.sum(), theirs * length**2)


def test_trl_orpo_and_simpo() -> None:
    orpo = pytest.importorskip("trl.experimental.orpo.orpo_trainer", reason="TRL: dev extra")
    cpo = pytest.importorskip("trl.experimental.cpo.cpo_trainer", reason="TRL: dev extra")
    pairs, beta, gamma = some_pairs(6, dtype=torch.float32), 0.7, 0.4
    mean_w_P, mean_l_P = pairs.policy_w / pairs.length_w, pairs.policy_l / pairs.length_l
    odds_P, *_ = orpo.ORPOTrainer.odds_ratio_loss(stand_in(beta=beta), mean_w_P, mean_l_P)
    torch.testing.assert_close(LOSSES["orpo"](pairs, beta, 0.0, 0.0), -mean_w_P - odds_P)
    itself = stand_in(
        beta=beta, alpha=0.0, loss_type="simpo", simpo_gamma=gamma, label_smoothing=0.0
    )
    simpo_P, *_ = cpo.CPOTrainer.cpo_loss(itself, mean_w_P, mean_l_P)
    torch.testing.assert_close(LOSSES["simpo"](pairs, beta, 0.0, gamma), simpo_P)


def test_trl_reward() -> None:
    reward = pytest.importorskip("trl.trainer.reward_trainer", reason="TRL is in the dev extra")
    chosen_P, rejected_P, margin_P = torch.randn(3, 8, dtype=torch.float64)
    outputs = SimpleNamespace(logits=torch.cat([chosen_P, rejected_P])[:, None])
    itself = stand_in(args=SimpleNamespace(center_rewards_coefficient=0.03))
    inputs = {"margin": margin_P, "attention_mask": torch.ones(16, 3)}
    theirs = reward.RewardTrainer.compute_loss(itself, lambda **_: outputs, inputs)
    ours_P = bradley_terry_loss(chosen_P, rejected_P, margin_P, 0.03)
    torch.testing.assert_close(ours_P.mean(), theirs)
