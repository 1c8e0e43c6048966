"""Objectives of a policy and its critic, against transformers' own forward pass of each
answer alone, and the losses written out in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raymill.rl.objective import Critic, PolicyGradient
from raymill.rl.rollout_batch import RolloutBatch, token_log_probs
from raymill.schema.sections import AlgorithmConfig
from rl.rollout import tiny
from rl.rollout.tiny import VOCAB_SIZE
from sections import plain

CPU = torch.device("cpu")
FAMILIES = ("llama", "qwen3", "gpt2")
TEMPERATURE, MOST = 0.7, 8  # the longest answer there may be
PLAIN = plain(AlgorithmConfig, "grpo", "grpo")


@cache
def built(family: str) -> Any:
    return tiny.tiny_model(family)


def tiny_model(family: str = "llama") -> Any:
    """One of its own for every test."""
    return copy.deepcopy(built(family))


def sampled(count: int = 6, seed: int = 0) -> RolloutBatch:
    """Answers of 0 to 8 tokens to prompts of 1 to 5."""
    random = np.random.default_rng(seed)

    def ids(size: int) -> list[int]:
        return random.integers(0, VOCAB_SIZE, size).tolist()

    sizes = [0, *(int(n) for n in random.integers(1, MOST + 1, count - 1))]
    prompts = [ids(int(n)) for n in random.integers(1, 6, count)]
    drawn = [(-random.uniform(0, 4, n)).tolist() for n in sizes]
    return RolloutBatch.from_columns(prompts, [ids(n) for n in sizes], drawn)


def with_columns(rollouts: RolloutBatch, model: Any, seed: int = 1) -> RolloutBatch:
    """All that is known at a step's start: near what the model says, so that some ratios are clipped."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        now_BT, _ = token_log_probs(
            model, model.get_output_embeddings(), rollouts, TEMPERATURE, CPU
        )

    def near(spread: float) -> torch.Tensor:
        noise_BT = torch.randn(now_BT.shape, generator=generator)
        return (now_BT + spread * noise_BT) * rollouts.mask

    advantage_B = torch.randn(len(rollouts), 1, generator=generator) * 2
    return replace(
        rollouts, sampler=near(0.5), old=near(0.4), reference=near(0.5),
        advantage=advantage_B * rollouts.mask, value=near(0.5), returns=near(1.0),
        kl_coefficient=0.3,
    )  # fmt: skip


def alone(model: Any, rollouts: RolloutBatch, row: int) -> torch.Tensor:
    """[L, V] Float64 log-probabilities at temperature, of this answer with its prompt by itself."""
    ids = rollouts.tokens[row, : rollouts.length[row]]
    logits_TV = model(input_ids=ids[None]).logits[0].double()
    return torch.log_softmax(logits_TV / TEMPERATURE, dim=-1)


def places(rollouts: RolloutBatch, row: int) -> list[int]:
    return rollouts.mask[row].nonzero()[:, 0].tolist()


def gradient(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def learning(model: Any, algorithm: AlgorithmConfig) -> PolicyGradient:
    return PolicyGradient(model.get_output_embeddings(), algorithm, TEMPERATURE, MOST)


def critic_model(family: str) -> Any:
    """A model with a head that gives one number."""
    from transformers import AutoModelForSequenceClassification

    config = tiny_model(family).config
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(11)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


# --- Rollouts ----------------------------------------------------------------------------------------


def test_columns_stand_for_the_predictions_of_the_next_token() -> None:
    found = RolloutBatch.from_columns(
        [[1, 2, 3], [4], [5, 6]], [[7, 8], [9, 10, 11], []], [[-1, -2], [-3, -4, -5], []]
    )
    assert found.tokens.tolist() == [[1, 2, 3, 7, 8], [4, 9, 10, 11, 0], [5, 6, 0, 0, 0]]
    assert found.length.tolist() == [5, 4, 2] and len(found) == 3
    assert found.mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert found.sampler.tolist() == [[0, 0, -1, -2], [-3, -4, -5, 0], [0, 0, 0, 0]]


def test_answers_taken_are_as_wide_as_the_longest_of_them() -> None:
    whole = with_columns(sampled(9), tiny_model())
    for part, index in (
        (whole.part(2, 5), [2, 3, 4]),
        (whole.part(7, 99), [7, 8]),
        (whole.take(torch.tensor([8, 0, 3])), [8, 0, 3]),
        (whole.take(torch.tensor([0])), [0]),
    ):
        width = max(2, int(whole.length[index].max()))
        assert part.tokens.shape == (len(index), width)
        assert part.kl_coefficient == whole.kl_coefficient
        for field in fields(RolloutBatch):
            of_whole, of_part = getattr(whole, field.name), getattr(part, field.name)
            if not isinstance(of_whole, torch.Tensor):
                continue
            if of_whole.ndim == 2:
                trimmed = width - (field.name != "tokens")
                assert not of_whole[index, trimmed:].any(), "only padding is cut off"
                of_whole = of_whole[:, :trimmed]
            assert torch.equal(of_part, of_whole[index])
    assert torch.cat([whole.part(n, n + 4).length for n in (0, 4, 8)]).equal(whole.length)
    bare = sampled().part(0, 2)
    assert all(getattr(bare, name) is None for name in ("old", "reference", "advantage", "value"))


def test_no_answers() -> None:
    none = sampled().take(torch.zeros(0, dtype=torch.long))
    assert len(none) == 0 and none.tokens.shape == (0, 2) and none.mask.shape == (0, 1)


# --- Log-probabilities -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_each_answer_alone(family: str) -> None:
    model, rollouts = tiny_model(family), sampled()
    with torch.no_grad():
        log_prob_BT, entropy_BT = token_log_probs(
            model, model.get_output_embeddings(), rollouts, TEMPERATURE, CPU
        )
        for row in range(len(rollouts)):
            exact_LV = alone(model, rollouts, row)
            for t in places(rollouts, row):
                chosen = float(exact_LV[t, rollouts.tokens[row, t + 1]])
                assert float(log_prob_BT[row, t]) == pytest.approx(chosen, rel=1e-5, abs=1e-5)
                nats = -float((exact_LV[t].exp() * exact_LV[t]).sum())
                assert float(entropy_BT[row, t]) == pytest.approx(nats, rel=1e-4, abs=1e-5)
    assert not log_prob_BT[rollouts.mask == 0].any() and not entropy_BT[rollouts.mask == 0].any()
    assert log_prob_BT.dtype == entropy_BT.dtype == torch.float32


def test_trl_sees_the_same_tokens() -> None:
    """TRL pads prompts on the left, and answers on the right, with a head of its own."""
    trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is in the dev extra")
    from trl.trainer.utils import add_fused_lm_head

    model, rollouts = tiny_model(), sampled().take(torch.arange(1, 6))
    before = [places(rollouts, row)[0] + 1 for row in range(5)]
    sizes = [len(places(rollouts, row)) for row in range(5)]
    left, right = max(before), max(sizes)
    ids = torch.zeros(5, left + right, dtype=torch.long)
    attention = torch.zeros_like(ids)
    for row, (first, size) in enumerate(zip(before, sizes, strict=True)):
        columns = slice(left - first, left + size)
        ids[row, columns] = rollouts.tokens[row, : first + size]
        attention[row, columns] = 1
    with torch.no_grad():
        head = model.get_output_embeddings()
        ours_BT, our_entropy_BT = token_log_probs(model, head, rollouts, TEMPERATURE, CPU)
        add_fused_lm_head(model, temperature=TEMPERATURE, outputs=("log_probs", "entropy"))
        accelerator = SimpleNamespace(autocast=nullcontext, is_main_process=False)
        itself = SimpleNamespace(accelerator=accelerator)
        theirs_BA, their_entropy_BA, _ = trainer.GRPOTrainer._get_per_token_logps_and_entropies(
            itself, model, ids, attention, right, compute_entropy=True
        )
    for row, size in enumerate(sizes):
        t = places(rollouts, row)
        torch.testing.assert_close(theirs_BA[row, :size], ours_BT[row, t], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            their_entropy_BA[row, :size], our_entropy_BT[row, t], rtol=1e-4, atol=1e-4
        )


# --- The policy's loss -------------------------------------------------------------------------------

VARIANTS = {
    "plain": PLAIN,
    "k2": replace(PLAIN, aggregation="sequence_mean", kl="loss", kl_estimator="k2", clip_high=0.28),
    "k3": replace(
        PLAIN, aggregation="constant_length", kl="loss", kl_estimator="k3", dual_clip=1.5
    ),
    "cap": replace(PLAIN, entropy_coefficient=0.2, importance_cap=1.1, kl="reward"),
}


def written_out(model: Any, rollouts: RolloutBatch, algorithm: AlgorithmConfig) -> torch.Tensor:
    """The mean loss of all answers, token by token, from each answer alone."""
    assert rollouts.old is not None and rollouts.reference is not None
    assert rollouts.advantage is not None
    answers: list[list[torch.Tensor]] = []
    for row in range(len(rollouts)):
        exact_LV, losses = alone(model, rollouts, row), []
        for t in places(rollouts, row):
            log_prob = exact_LV[t, rollouts.tokens[row, t + 1]]
            old, mu = float(rollouts.old[row, t]), float(rollouts.sampler[row, t])
            gain = float(rollouts.advantage[row, t])
            ratio = (log_prob - old).exp()
            now = ratio.item()
            bounded = min(max(now, 1 - algorithm.clip_low), 1 + algorithm.clip_high)
            surrogate = ratio * gain if now * gain <= bounded * gain else bounded * gain
            if (
                algorithm.dual_clip is not None
                and gain < 0
                and surrogate < algorithm.dual_clip * gain
            ):
                surrogate = algorithm.dual_clip * gain
            loss = -torch.as_tensor(surrogate, dtype=torch.float64)
            if algorithm.importance_cap is not None:
                loss = loss * min(math.exp(old - mu), algorithm.importance_cap)
            if algorithm.kl == "loss":
                d = log_prob - float(rollouts.reference[row, t])
                estimate = d**2 / 2 if algorithm.kl_estimator == "k2" else (-d).exp() - 1 + d
                loss = loss + rollouts.kl_coefficient * estimate
            nats = -(exact_LV[t].exp() * exact_LV[t]).sum()
            losses.append(loss - algorithm.entropy_coefficient * nats)
        answers.append(losses)
    learned = [losses for losses in answers if losses]
    flat = torch.stack([loss for losses in learned for loss in losses])
    if algorithm.aggregation == "token_mean":
        return flat.mean()
    if algorithm.aggregation == "sequence_mean":
        return torch.stack([torch.stack(losses).mean() for losses in learned]).mean()
    return flat.sum() / (len(learned) * MOST)


@pytest.mark.parametrize("algorithm", VARIANTS.values(), ids=VARIANTS)
def test_the_loss_and_its_gradient_are_their_definition(algorithm: AlgorithmConfig) -> None:
    model = tiny_model()
    rollouts = with_columns(sampled(), model)
    objective = learning(model, algorithm)
    found = objective.losses(model, rollouts, CPU).sum() / objective.weight(rollouts)
    expected = written_out(model, rollouts, algorithm)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert difference(gradient(model, found), gradient(model, expected)) < 1e-4


@pytest.mark.parametrize("algorithm", VARIANTS.values(), ids=VARIANTS)
def test_micro_batches_order_and_padding_change_nothing(algorithm: AlgorithmConfig) -> None:
    model = tiny_model()
    rollouts = with_columns(sampled(7), model)
    objective = learning(model, algorithm)
    weight = objective.weight(rollouts)
    losses_B = objective.losses(model, rollouts, CPU) / weight
    whole = gradient(model, losses_B.sum())
    order = torch.tensor([6, 2, 0, 4, 1, 5, 3])
    mixed = rollouts.take(order)
    parts, found = torch.zeros_like(whole), []
    for first, stop in ((0, 1), (1, 4), (4, 7)):
        part_B = objective.losses(model, mixed.part(first, stop), CPU) / weight
        parts += gradient(model, part_B.sum())
        found.append(part_B.detach())
    torch.testing.assert_close(torch.cat(found), losses_B.detach()[order], rtol=1e-4, atol=1e-6)
    assert difference(parts, whole) < 1e-5
    assert sum(objective.weight(mixed.part(n, n + 1)) for n in range(7)) == weight


@pytest.mark.parametrize("algorithm", VARIANTS.values(), ids=VARIANTS)
def test_without_old_the_policy_itself_is_old(algorithm: AlgorithmConfig) -> None:
    model = tiny_model()
    rollouts = with_columns(sampled(), model)
    with torch.no_grad():
        now_BT, _ = token_log_probs(
            model, model.get_output_embeddings(), rollouts, TEMPERATURE, CPU
        )
    objective = learning(model, algorithm)
    found = [
        objective.losses(model, replace(rollouts, old=old), CPU).sum() for old in (None, now_BT)
    ]
    assert found[0].item() == found[1].item()
    assert torch.equal(gradient(model, found[0]), gradient(model, found[1]))


def test_on_policy_the_gradient_is_reinforces() -> None:
    """−Σ A ∇log π, whatever the clip: all ratios are 1."""
    model = tiny_model()
    rollouts = replace(with_columns(sampled(), model), old=None)
    loss = learning(model, PLAIN).losses(model, rollouts, CPU).sum()
    log_prob_BT, _ = token_log_probs(
        model, model.get_output_embeddings(), rollouts, TEMPERATURE, CPU
    )
    assert rollouts.advantage is not None
    expected = gradient(model, -(rollouts.advantage * log_prob_BT).sum())
    assert difference(gradient(model, loss), expected) < 1e-6


def test_answers_without_a_token_take_part_and_change_nothing() -> None:
    model = tiny_model()
    rollouts = with_columns(sampled(), model)
    nothing = replace(rollouts, mask=torch.zeros_like(rollouts.mask))
    objective = learning(model, VARIANTS["k2"])
    with torch.no_grad():
        known = token_log_probs(model, model.get_output_embeddings(), nothing, TEMPERATURE, CPU)
    assert not any(one.any() for one in known)
    losses_B = objective.losses(model, nothing, CPU)
    assert losses_B.tolist() == [0.0] * 6 and objective.weight(nothing) == 0.0
    losses_B.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


# --- Metrics -----------------------------------------------------------------------------------------


def told(objective: PolicyGradient) -> dict[str, float]:
    return {name: total / weight for name, (total, weight) in objective.metric_sums.drain().items()}


def test_the_first_step_has_ratios_of_one_and_no_distance() -> None:
    model = tiny_model()
    rollouts = with_columns(sampled(), model)
    with torch.no_grad():
        now_BT, entropy_BT = token_log_probs(
            model, model.get_output_embeddings(), rollouts, TEMPERATURE, CPU
        )
    first = replace(rollouts, old=now_BT, sampler=now_BT, reference=now_BT)
    objective = learning(model, PLAIN)
    objective.losses(model, first, CPU)
    assert told(objective) == {
        "policy/entropy": pytest.approx(float(entropy_BT.sum() / rollouts.mask.sum()), rel=1e-5),
        "policy/ratio": pytest.approx(1.0, abs=1e-6),
        "policy/clip_fraction": 0.0,
        "policy/kl_old": pytest.approx(0.0, abs=1e-6),
        "sampler/ratio": pytest.approx(1.0, abs=1e-6),
        "policy/kl_reference": pytest.approx(0.0, abs=1e-6),
    }


def test_figures_are_means_over_tokens_of_all_micro_batches() -> None:
    model = tiny_model()
    rollouts = with_columns(sampled(), model)
    objective = learning(model, PLAIN)
    for first in range(0, 6, 2):
        objective.losses(model, rollouts.part(first, first + 2), CPU)
    with torch.no_grad():
        now_BT, _ = token_log_probs(
            model, model.get_output_embeddings(), rollouts, TEMPERATURE, CPU
        )

    def each(of: Callable[[float, float, float, float], float]) -> Any:
        assert rollouts.old is not None and rollouts.reference is not None
        columns = (now_BT, rollouts.old, rollouts.sampler, rollouts.reference)
        values = [
            of(*(float(column[row, t]) for column in columns))
            for row in range(len(rollouts))
            for t in places(rollouts, row)
        ]
        return pytest.approx(np.mean(values), rel=1e-4)

    found = told(objective)
    assert found["policy/ratio"] == each(lambda now, old, mu, ref: math.exp(now - old))
    assert found["policy/clip_fraction"] == each(
        lambda now, old, mu, ref: abs(math.exp(now - old) - 1) > 0.2
    )
    # KL(π_old ‖ π) of tokens drawn from π_old, KL(π ‖ π_ref) as if they were drawn from π.
    assert found["policy/kl_old"] == each(
        lambda now, old, mu, ref: math.exp(now - old) - 1 - (now - old)
    )
    assert found["policy/kl_reference"] == each(
        lambda now, old, mu, ref: math.exp(ref - now) - 1 + now - ref
    )
    assert found["sampler/ratio"] == each(lambda now, old, mu, ref: math.exp(abs(mu - old)))


def test_answers_that_were_dropped_spoil_no_figure() -> None:
    """Masked tokens have columns of old policy, reference and sampler, whatever their values."""
    model = tiny_model()
    rollouts = with_columns(sampled(), model)
    objective = learning(model, VARIANTS["k2"])
    kept = rollouts.take(torch.arange(3))
    loss = objective.losses(model, kept, CPU).sum().item()
    figures = told(objective)
    assert rollouts.old is not None and rollouts.reference is not None
    columns = {
        name: getattr(rollouts, name).clone()
        for name in ("mask", "old", "reference", "sampler", "advantage")
    }
    columns["mask"][3:] = 0
    columns["advantage"][3:] = 0
    for name, value in (("old", -200.0), ("reference", -300.0), ("sampler", -90.0)):
        columns[name][3:] = value * rollouts.mask[3:]
    losses_B = objective.losses(model, replace(rollouts, **columns), CPU)
    assert losses_B[3:].tolist() == [0.0] * 3 and losses_B.sum().item() == pytest.approx(
        loss, rel=1e-5
    )
    assert torch.isfinite(gradient(model, losses_B.sum())).all()
    assert told(objective) == pytest.approx(figures, rel=1e-4)


# --- The critic --------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_the_critic(family: str, clip: float | None) -> None:
    """V_t is said at the token before t + 1 is drawn; its loss, gradient and micro-batches."""
    model = critic_model(family)
    rollouts = with_columns(sampled(), tiny_model())
    critic = Critic(model.score, clip)
    found_B = critic.losses(model, rollouts, CPU)
    whole = gradient(model, found_B.sum())
    assert rollouts.value is not None and rollouts.returns is not None
    values_BT = critic.values(model, rollouts, CPU)
    assert values_BT.shape == rollouts.mask.shape and values_BT.dtype == torch.float32
    terms = []
    for row in range(len(rollouts)):
        ids = rollouts.tokens[row, : rollouts.length[row]]
        exact_L = model.score(model.base_model(input_ids=ids[None]).last_hidden_state)[
            0, :, 0
        ].double()
        own = torch.zeros((), dtype=torch.float64)
        for t in places(rollouts, row):
            assert values_BT[row, t].item() == pytest.approx(exact_L[t].item(), rel=1e-4, abs=1e-5)
            old, target = float(rollouts.value[row, t]), float(rollouts.returns[row, t])
            error = (exact_L[t] - target) ** 2
            if clip is not None:
                near = torch.clamp(exact_L[t], old - clip, old + clip)
                error = torch.maximum(error, (near - target) ** 2)
            own = own + error / 2
        terms.append(own)
    expected_B = torch.stack(terms)
    torch.testing.assert_close(found_B.detach().double(), expected_B.detach(), rtol=1e-4, atol=1e-5)
    assert difference(whole, gradient(model, expected_B.sum())) < 1e-4
    parts = torch.zeros_like(whole)
    for first in (4, 0, 2):
        part = rollouts.part(first, first + 2)
        parts += gradient(model, critic.losses(model, part, CPU).sum())
    assert difference(parts, whole) < 1e-5
    assert critic.weight(rollouts) == float(rollouts.mask.sum())


def test_a_critic_without_tokens_takes_part_and_changes_nothing() -> None:
    model = critic_model("llama")
    rollouts = with_columns(sampled(), tiny_model())
    nothing = replace(rollouts, mask=torch.zeros_like(rollouts.mask))
    losses_B = Critic(model.score, 0.2).losses(model, nothing, CPU)
    assert losses_B.tolist() == [0.0] * 6
    losses_B.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
