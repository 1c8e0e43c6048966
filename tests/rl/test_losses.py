"""Parts of policy-gradient losses: against loops over floats, exact enumerations, and TRL's GRPO."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import FrozenInstanceError
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.errors import NonFiniteError
from raymill.objective.log_probs import entropy
from raymill.rl.losses import (
    AdaptiveKl,
    aggregation_denominator,
    aggregation_weights,
    clipped_surrogate,
    kl,
    truncated_importance_weight,
    value_loss,
)

UNHURRIED = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)
ESTIMATORS = ("k1", "k2", "k3")
AGGREGATIONS = ("token_mean", "sequence_mean", "constant_length")


def normal(seed: int, *shape: int, spread: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, spread, shape))


# --- KL ----------------------------------------------------------------------------------------------


@UNHURRIED
@given(seed=SEEDS)
def test_estimators_are_their_definitions(seed: int) -> None:
    log_prob, reference = normal(seed, 2, 4, 5)
    definitions = {
        "k1": lambda d: d,
        "k2": lambda d: d * d / 2,
        "k3": lambda d: math.exp(-d) - 1 + d,
    }
    for name, definition in definitions.items():
        expected = [[definition(d) for d in row] for row in (log_prob - reference).tolist()]
        torch.testing.assert_close(kl(name, log_prob, reference), torch.tensor(expected).double())
    assert (kl("k3", log_prob, reference) >= 0).all()


def test_k3_of_nearly_equal_policies_is_not_rounding_noise() -> None:
    """The first step's invariant is |KL| < 1e-6; e^(−d) − 1 + d in fp32 is off by 1e-7 a token."""
    log_prob = torch.zeros(200)
    reference = -torch.logspace(-6, -2, 200)
    d = (log_prob - reference).double()
    exact = d**2 / 2 - d**3 / 6 + d**4 / 24
    error = (kl("k3", log_prob, reference).double() - exact).abs()
    assert (error <= 1.2e-7 * d).all()


def test_an_unknown_estimator() -> None:
    with pytest.raises(ValueError, match="'k4' isn't an estimator of KL"):
        kl("k4", torch.zeros(1), torch.zeros(1))


def distributions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a policy of six outcomes, and the log-probabilities of its reference."""
    logits_V, reference_V = normal(seed, 2, 6)
    return logits_V.requires_grad_(), torch.log_softmax(reference_V, dim=0)


def gradient_as_loss(name: str, logits_V: torch.Tensor, reference_V: torch.Tensor) -> torch.Tensor:
    """Expected gradient of the loss of a token drawn from π, over all tokens there are.

    The drawing has no gradient: that is what it is to be a loss.
    """
    log_prob_V = torch.log_softmax(logits_V, dim=0)
    drawn_V = log_prob_V.detach().exp()
    [found_V] = torch.autograd.grad((drawn_V * kl(name, log_prob_V, reference_V)).sum(), logits_V)
    return found_V


@UNHURRIED
@given(seed=SEEDS)
def test_which_gradient_each_estimator_has_as_a_loss(seed: int) -> None:
    """k1: none. k2: the KL's. k3: the reverse KL's, which isn't the KL's."""
    logits_V, reference_V = distributions(seed)
    log_prob_V = torch.log_softmax(logits_V, dim=0)
    forward = (log_prob_V.exp() * (log_prob_V - reference_V)).sum()
    reverse = (reference_V.exp() * (reference_V - log_prob_V)).sum()
    [true_V] = torch.autograd.grad(forward, logits_V, retain_graph=True)
    [reverse_V] = torch.autograd.grad(reverse, logits_V)
    assert gradient_as_loss("k1", logits_V, reference_V).abs().max() < 1e-12
    torch.testing.assert_close(gradient_as_loss("k2", logits_V, reference_V), true_V)
    torch.testing.assert_close(gradient_as_loss("k3", logits_V, reference_V), reverse_V)
    # The analytic gradient of KL(π‖π_ref) for softmax logits: p_v (d_v − KL).
    d_V, p_V = (log_prob_V - reference_V).detach(), log_prob_V.detach().exp()
    torch.testing.assert_close(true_V, p_V * (d_V - (p_V * d_V).sum()))


def test_k3_is_biased_as_a_loss() -> None:
    """k3's gradient is wrong by more than rounding: the more certain a policy is, the larger the factor."""
    logits_V = torch.tensor([6.0, 0.0], dtype=torch.float64, requires_grad=True)
    reference_V = torch.log(torch.tensor([0.5, 0.5], dtype=torch.float64))
    right_V = gradient_as_loss("k2", logits_V, reference_V)
    biased_V = gradient_as_loss("k3", logits_V, reference_V)
    assert (biased_V / right_V).min() > 20


@UNHURRIED
@given(seed=SEEDS)
def test_values_of_estimators(seed: int) -> None:
    """k1 and k3 are unbiased as values."""
    logits_V, reference_V = distributions(seed)
    log_prob_V = torch.log_softmax(logits_V, dim=0).detach()
    exact = (log_prob_V.exp() * (log_prob_V - reference_V)).sum()
    for name in ("k1", "k3"):
        value = (log_prob_V.exp() * kl(name, log_prob_V, reference_V)).sum()
        torch.testing.assert_close(value, exact)


def test_of_sequences_only_the_reward_has_the_whole_gradient() -> None:
    """Answers of two tokens: k2 as a loss is each token's KL given what stands before; what the first
    token does to the second's only k1 in the reward knows."""
    first_V, second_VV = normal(1, 3).requires_grad_(), normal(2, 3, 3).requires_grad_()
    reference_1, reference_2 = normal(3, 3).log_softmax(0), normal(4, 3, 3).log_softmax(1)
    log_1, log_2 = first_V.log_softmax(0), second_VV.log_softmax(1)
    exact = in_reward = as_loss = given_prefix = torch.zeros((), dtype=torch.float64)
    for a, b in product(range(3), range(3)):
        weight = (log_1[a] + log_2[a, b]).exp()
        d1, d2 = log_1[a] - reference_1[a], log_2[a, b] - reference_2[a, b]
        exact = exact + weight * (d1 + d2)
        drawn = weight.detach()
        in_reward = in_reward + drawn * ((d1 + d2).detach() * log_1[a] + d2.detach() * log_2[a, b])
        k2 = [kl("k2", log_1[a], reference_1[a]), kl("k2", log_2[a, b], reference_2[a, b])]
        as_loss = as_loss + drawn * (k2[0] + k2[1])
        conditional = log_2[a, b].exp() * d2
        given_prefix = given_prefix + log_1[a].detach().exp() * conditional
    given_prefix = given_prefix + (log_1.exp() * (log_1 - reference_1)).sum()
    gradients = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(x, (first_V, second_VV), retain_graph=True)]
        )
        for x in (exact, in_reward, as_loss, given_prefix)
    ]
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.testing.assert_close(gradients[2], gradients[3])
    torch.testing.assert_close(gradients[2][3:], gradients[0][3:])
    assert not torch.allclose(gradients[2][:3], gradients[0][:3], rtol=0.1)


# --- surrogate, value, entropy, weight ---------------------------------------------------------------


@UNHURRIED
@given(
    seed=SEEDS,
    low=st.floats(0.05, 0.5),
    high=st.floats(0.05, 0.5),
    dual=st.none() | st.floats(1.5, 4),
)
def test_the_clipped_surrogate(seed: int, low: float, high: float, dual: float | None) -> None:
    log_prob, old, advantage = normal(seed, 3, 4, 6)
    advantage[0, 0] = 0.0
    log_prob.requires_grad_()
    loss = clipped_surrogate(log_prob, old, advantage, low, high, dual)
    [gradient] = torch.autograd.grad(loss.sum(), log_prob)
    for at in product(range(4), range(6)):
        ratio = math.exp(log_prob[at].item() - old[at].item())
        a = advantage[at].item()
        gain = min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
        follows = ratio * a == gain  # where the ratio itself is what counts
        if dual is not None and a < 0:
            follows &= gain > dual * a
            gain = max(gain, dual * a)
        assert loss[at].item() == pytest.approx(-gain)
        assert gradient[at].item() == pytest.approx(-ratio * a if follows else 0.0)


def test_at_the_start_of_a_step_the_gradient_is_reinforces() -> None:
    log_prob, advantage = normal(5, 2, 3, 4)
    log_prob.requires_grad_()
    loss = clipped_surrogate(log_prob, log_prob.detach(), advantage, 0.2, 0.2, 3.0)
    torch.testing.assert_close(loss, -advantage)
    [gradient] = torch.autograd.grad(loss.sum(), log_prob)
    torch.testing.assert_close(gradient, -advantage)


def test_a_ratio_beyond_fp32_makes_no_nan() -> None:
    log_prob = torch.tensor([0.0, 0.0, 0.0, -200.0], requires_grad=True)
    old = torch.tensor([-200.0, -200.0, -200.0, 0.0])
    advantage = torch.tensor([0.0, -1.0, 1.0, -1.0])
    loss = clipped_surrogate(log_prob, old, advantage, 0.2, 0.3, 3.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.0, 3.0, -1.3, 0.8])
    assert log_prob.grad is not None and log_prob.grad.tolist() == [0.0] * 4


@UNHURRIED
@given(seed=SEEDS, clip=st.none() | st.floats(0.05, 2))
def test_the_value_loss(seed: int, clip: float | None) -> None:
    value, old, returns = normal(seed, 3, 20)
    loss = value_loss(value, old, returns, clip)
    for found, v, o, r in zip(
        loss.tolist(), *map(torch.Tensor.tolist, (value, old, returns)), strict=True
    ):
        near = v if clip is None else min(max(v, o - clip), o + clip)
        assert found == pytest.approx(0.5 * max((v - r) ** 2, (near - r) ** 2))


def test_entropy() -> None:
    logits_NV = normal(6, 5, 7, spread=4.0)
    logits_NV[0, 2:5] = -math.inf  # can't be drawn
    found_N = entropy(logits_NV.log_softmax(dim=1))
    for row, found in zip(logits_NV.softmax(dim=1).tolist(), found_N.tolist(), strict=True):
        assert found == pytest.approx(-sum(p * math.log(p) for p in row if p > 0))
    assert entropy(torch.zeros(1, 8).log_softmax(dim=1)).item() == pytest.approx(math.log(8))


@UNHURRIED
@given(seed=SEEDS, cap=st.floats(0.5, 5))
def test_the_truncated_importance_weight(seed: int, cap: float) -> None:
    old, sampler = normal(seed, 2, 12)
    old.requires_grad_()
    weight = truncated_importance_weight(old, sampler, cap)
    assert not weight.requires_grad
    expected = [
        min(math.exp(o - s), cap) for o, s in zip(old.tolist(), sampler.tolist(), strict=True)
    ]
    assert weight.tolist() == pytest.approx(expected)
    far = truncated_importance_weight(torch.tensor([0.0]), torch.tensor([-500.0]), cap)
    assert far.tolist() == pytest.approx([cap])


def test_truncated_weights_correct_for_the_sampler_exactly_below_the_cap() -> None:
    """E_μ[min(π/μ, C) f] is E_π[f] where C never binds, and never more than it for f ≥ 0 where it does."""
    policy_V, sampler_V = normal(7, 2, 8).log_softmax(dim=1)
    f_V = normal(8, 8).abs()
    wanted = (policy_V.exp() * f_V).sum().item()
    for cap in (1e9, 1.0):
        weight_V = truncated_importance_weight(policy_V, sampler_V, cap)
        found = (sampler_V.exp() * weight_V * f_V).sum().item()
        assert found == pytest.approx(wanted) if cap > 1 else found < wanted


# --- aggregation -------------------------------------------------------------------------------------


def some_losses(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and a mask [B, T] of answers of which some have no token that counts."""
    random = np.random.default_rng(seed)
    shape = (random.integers(1, 9), random.integers(1, 8))
    mask = (random.random(shape) < random.choice([0.2, 0.6, 1.0])).astype(np.float64)
    return torch.from_numpy(random.normal(0, 1, shape)), torch.from_numpy(mask)


def aggregated(
    name: str, parts: list[tuple[torch.Tensor, torch.Tensor]], max_tokens: int = 11
) -> torch.Tensor:
    """Aggregate as the loop does: sums and denominators of all parts, then one division."""
    sums = [(loss * aggregation_weights(name, mask, max_tokens)).sum() for loss, mask in parts]
    denominator = sum(aggregation_denominator(name, mask, max_tokens) for _, mask in parts)
    return torch.stack(sums).sum() / max(denominator, 1.0)


@pytest.mark.parametrize("name", AGGREGATIONS)
@UNHURRIED
@given(seed=SEEDS)
def test_aggregation(name: str, seed: int) -> None:
    loss_BT, mask_BT = some_losses(seed)
    rows = [
        [x for x, counts in zip(row, mask, strict=True) if counts]
        for row, mask in zip(loss_BT.tolist(), mask_BT.tolist(), strict=True)
    ]
    rows = [row for row in rows if row]
    if not rows:
        expected = 0.0
    elif name == "token_mean":
        expected = sum(map(sum, rows)) / sum(map(len, rows))
    elif name == "sequence_mean":
        expected = sum(sum(row) / len(row) for row in rows) / len(rows)
    else:
        expected = sum(map(sum, rows)) / (len(rows) * 11)
    assert aggregated(name, [(loss_BT, mask_BT)]).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", AGGREGATIONS)
@UNHURRIED
@given(seed=SEEDS, cut=st.integers(0, 8))
def test_splitting_order_and_padding_change_neither_loss_nor_gradient(
    name: str, seed: int, cut: int
) -> None:
    loss_BT, mask_BT = some_losses(seed)
    loss_BT.requires_grad_()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(mask_BT)))
    mixed_BT, mixed_mask_BT = loss_BT[order], mask_BT[order]
    padding = (0, 3, 0, 2)  # columns on the right, and answers of nothing
    padded = [torch.nn.functional.pad(x[cut:], padding) for x in (mixed_BT, mixed_mask_BT)]
    whole = aggregated(name, [(loss_BT, mask_BT)])
    parts = aggregated(name, [(mixed_BT[:cut], mixed_mask_BT[:cut]), (padded[0], padded[1])])
    torch.testing.assert_close(parts, whole)
    gradients = [torch.autograd.grad(x, loss_BT)[0] for x in (whole, parts)]
    torch.testing.assert_close(*gradients)


def test_an_unknown_aggregation() -> None:
    for function in (aggregation_weights, aggregation_denominator):
        with pytest.raises(ValueError, match="'mean' isn't an aggregation"):
            function("mean", torch.ones(1, 1), 1)


# --- adaptive coefficient ----------------------------------------------------------------------------


@UNHURRIED
@given(
    beta=st.floats(1e-4, 1),
    target=st.floats(0.01, 10),
    found=st.floats(-1, 100),
    samples=st.integers(1, 512),
)
def test_the_adaptive_coefficient(beta: float, target: float, found: float, samples: int) -> None:
    controller = AdaptiveKl(beta, target, 1000)
    error = min(0.2, max(-0.2, found / target - 1))
    after = controller.updated(found, samples)
    assert after.beta == pytest.approx(beta * (1 + error * samples / 1000))
    assert (after.target, after.horizon, controller.beta) == (target, 1000, beta)
    assert controller.updated(target, samples).beta == beta
    assert AdaptiveKl(beta, None, 1000).updated(found, samples).beta == beta


def test_the_adaptive_coefficient_steers_to_its_target() -> None:
    """A policy whose KL is 1/β comes to rest where the KL is the target."""
    controller = AdaptiveKl(1.0, 5.0, 1000)
    for _ in range(500):
        controller = controller.updated(1 / controller.beta, 128)
    assert 1 / controller.beta == pytest.approx(5.0, rel=1e-3)


def test_the_adaptive_coefficient_is_never_lost() -> None:
    controller = AdaptiveKl(0.1, 5.0, 1000)
    with pytest.raises(NonFiniteError, match=r"KL to the reference is NaN.*now 0\.1"):
        controller.updated(math.nan, 8)
    assert controller.updated(math.inf, 100).beta == pytest.approx(0.102)
    with pytest.raises(FrozenInstanceError):
        controller.beta = 1.0  # type: ignore[misc]


# --- against TRL -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("grpo", "sequence_mean"), ("bnpo", "token_mean"), ("dr_grpo", "constant_length")],
)
@pytest.mark.parametrize("dual", [None, 3.0])
def test_trl_grpo(theirs: str, ours: str, dual: float | None) -> None:
    """The whole loss and its gradient, with k3 to the reference, as TRL has it."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is in the dev extra")
    log_prob_BT, old_BT, reference_BT = normal(11, 3, 5, 8)
    old_BT[0, 0] = log_prob_BT[0, 0] - 3.0  # a ratio above the dual bound
    advantage_B = normal(12, 5)
    advantage_B[0] = -1.0
    mask_BT = (torch.arange(8) < torch.tensor([8, 1, 5, 3, 7])[:, None]).long()
    log_prob_BT.requires_grad_()

    accelerator = SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x)
    itself: Any = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (log_prob_BT, log_prob_BT * 0, None),
        accelerator=accelerator, model=SimpleNamespace(training=True), loss_type=theirs, beta=0.04,
        _metrics={"train": defaultdict(list)}, current_gradient_accumulation_steps=1,
        max_completion_length=16, epsilon_low=0.2, epsilon_high=0.28, top_entropy_quantile=1.0,
        off_policy_mask_threshold=None, importance_sampling_level="token", aux_loss_enabled=False,
        use_vllm=False, _entropy_bonus_enabled=False,
        args=SimpleNamespace(delta=dual, use_bias_correction_kl=False),
    )  # fmt: skip
    prompt = torch.ones(5, 2, dtype=torch.long)
    inputs = {
        "prompt_ids": prompt, "prompt_mask": prompt, "completion_ids": mask_BT,
        "completion_mask": mask_BT, "advantages": advantage_B, "old_per_token_logps": old_BT,
        "ref_per_token_logps": reference_BT,
    }  # fmt: skip
    their_loss = trainer.GRPOTrainer._compute_loss(itself, None, inputs)
    [their_gradient] = torch.autograd.grad(their_loss, log_prob_BT)

    loss_BT = clipped_surrogate(log_prob_BT, old_BT, advantage_B[:, None], 0.2, 0.28, dual)
    loss_BT = loss_BT + 0.04 * kl("k3", log_prob_BT, reference_BT)
    our_loss = aggregated(ours, [(loss_BT, mask_BT.double())], 16)
    [our_gradient] = torch.autograd.grad(our_loss, log_prob_BT)
    torch.testing.assert_close(our_loss, their_loss)
    torch.testing.assert_close(our_gradient, their_gradient)
