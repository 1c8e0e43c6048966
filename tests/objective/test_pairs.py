"""Objectives on pairs, against transformers' own forward pass of each conversation alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from raymill.data.store.rows import Rows
from raymill.objective.pairs import PairSequences, PreferredAnswers, RewardPairs, answer_log_probs
from raymill.objective.preferences import LOSSES, NEEDS_REFERENCE
from rl.rollout import tiny
from rl.rollout.tiny import VOCAB_SIZE

CPU = torch.device("cpu")
FAMILIES = ("llama", "qwen3", "gpt2")
PAD = 0  # what rows are padded with; some conversations below hold it as a token


@cache
def built(family: str) -> Any:
    return tiny.tiny_model(family)


def tiny_model(family: str = "llama") -> Any:
    """One of its own for every test."""
    return copy.deepcopy(built(family))


@dataclass(frozen=True)
class Pair:
    prompt: list[int]
    better: list[int]
    worse: list[int]
    weight: float = 1.0
    margin: float = 0.0

    @property
    def conversations(self) -> tuple[list[int], list[int]]:
        return [*self.prompt, *self.better], [*self.prompt, *self.worse]


def some_pairs(count: int = 6, seed: int = 0) -> list[Pair]:
    """Return pairs of different lengths, with weights and margins."""
    random = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return random.integers(0, VOCAB_SIZE, random.integers(low, high)).tolist()

    return [
        Pair(
            ids(1, 6), ids(1, 9), ids(1, 9), float(random.uniform(0.25, 1)), float(random.random())
        )
        for _ in range(count)
    ]


def rows_of(pairs: Sequence[Pair], width: int = 40) -> Rows:
    """Build rows as preparation does: the better conversation, then the worse, then padding."""
    columns = Rows.empty(width, "uint16", "preference").columns()
    columns = {n: np.zeros((len(pairs), *c.shape[1:]), c.dtype) for n, c in columns.items()}
    for row, pair in enumerate(pairs):
        start = 0
        for side, answer in enumerate((pair.better, pair.worse)):
            middle, stop = start + len(pair.prompt), start + len(pair.prompt) + len(answer)
            columns["tokens"][row, start:stop] = [*pair.prompt, *answer]
            columns["weight"][row, middle:stop] = pair.weight
            columns["segment"][row, start:stop] = side
            start = stop
        columns["length"][row] = start
        columns["record"][row], columns["margin"][row] = row, pair.margin
    return Rows.from_columns(columns)


def alone(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """The answer's summed log-probability, from transformers' logits of this conversation by itself."""
    logits_TV = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].double()
    total = torch.zeros((), dtype=torch.float64)
    for place, token in enumerate(answer, start=len(prompt)):
        total = total + torch.log_softmax(logits_TV[place - 1], dim=-1)[token]
    return total


def shaken(model: Any, seed: int = 5) -> Any:
    """Return a copy with slightly different weights: a policy that has moved from its reference."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def gradient(model: torch.nn.Module, loss: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def reference_of(pairs: Sequence[Pair], model: Any) -> Callable[[Rows], Any]:
    """Reference like the cached one, by the number of the record."""
    with torch.no_grad():
        known = [
            [float(alone(model, pair.prompt, answer)) for answer in (pair.better, pair.worse)]
            for pair in pairs
        ]
    table = torch.tensor(known).reshape(-1, 2)

    def reference(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        assert rows.record is not None
        better, worse = table[torch.from_numpy(rows.record)].unbind(dim=1)
        return better, worse

    return reference


def preferring(model: Any, loss: str, pairs: Sequence[Pair]) -> PreferredAnswers:
    reference = reference_of(pairs, tiny_model()) if loss in NEEDS_REFERENCE else None
    return PreferredAnswers(model.get_output_embeddings(), loss, 0.3, 0.1, 0.4, reference)


def classifier(family: str, pad_id: int = PAD) -> Any:
    """transformers' own, random, giving one number."""
    from transformers import AutoModelForSequenceClassification

    config = tiny_model(family).config
    config.num_labels, config.pad_token_id = 1, pad_id
    torch.manual_seed(11)
    return shaken(AutoModelForSequenceClassification.from_config(config).eval())


# --- PairSequences ---------------------------------------------------------------------------------------


def test_a_row_becomes_two_padded_conversations() -> None:
    pairs = [Pair([1, 2], [3], [4, 5, 6], 0.5, 0.7), Pair([7], [8, 9], [0])]
    sequences = PairSequences.from_rows(rows_of(pairs))
    assert sequences.tokens.tolist() == [
        [1, 2, 3, 0, 0], [7, 8, 9, 0, 0], [1, 2, 4, 5, 6], [7, 0, 0, 0, 0],
    ]  # fmt: skip
    assert sequences.length.tolist() == [3, 3, 5, 2]
    assert sequences.answer.long().tolist() == [
        [0, 0, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0],
    ]  # fmt: skip
    assert sequences.weight.tolist() == [0.5, 1.0]
    assert sequences.margin.tolist() == pytest.approx([0.7, 0.0])


# --- Log-probabilities -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_are_those_of_each_conversation_alone(family: str) -> None:
    model, pairs = tiny_model(family), some_pairs()
    with torch.no_grad():
        better_P, worse_P = answer_log_probs(
            model, model.get_output_embeddings(), PairSequences.from_rows(rows_of(pairs)), CPU
        )
        for place, pair in enumerate(pairs):
            for found_P, answer in ((better_P, pair.better), (worse_P, pair.worse)):
                expected = float(alone(model, pair.prompt, answer))
                assert float(found_P[place]) == pytest.approx(expected, rel=1e-5)
    assert better_P.dtype == torch.float32


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_the_gradient_is_that_of_whole_forward_passes(loss: str) -> None:
    """The definitions from each conversation alone, in float64, differentiated by autograd."""
    model, pairs = shaken(tiny_model()), some_pairs()
    objective = preferring(model, loss, pairs)
    found = gradient(model, objective.losses(model, rows_of(pairs), CPU).sum())
    reference = objective.reference(rows_of(pairs)) if objective.reference else None
    total = torch.zeros((), dtype=torch.float64)
    for place, pair in enumerate(pairs):
        good, bad = (alone(model, pair.prompt, answer) for answer in (pair.better, pair.worse))
        mean_w, mean_l = good / len(pair.better), bad / len(pair.worse)
        if reference is not None:
            h = good - bad - (reference[0][place] - reference[1][place])
        if loss == "dpo":
            p = torch.sigmoid(0.3 * h)
            term = -0.9 * p.log() - 0.1 * (1 - p).log()
        elif loss == "ipo":
            term = (h - 1 / 0.6) ** 2
        elif loss == "simpo":
            term = -torch.sigmoid(0.3 * (mean_w - mean_l) - 0.4).log()
        else:
            odds_w, odds_l = (m.exp() / (1 - m.exp()) for m in (mean_w, mean_l))
            term = -mean_w - 0.3 * torch.sigmoid((odds_w / odds_l).log()).log()
        total = total + pair.weight * term
    expected = gradient(model, total)
    assert float((found - expected).norm() / expected.norm()) < 1e-4


def test_dpo_starts_at_ln_2() -> None:
    model, pairs = tiny_model(), some_pairs()
    objective = preferring(model, "dpo", pairs)
    with torch.no_grad():
        found = objective.compare(model, rows_of(pairs), CPU)
    assert (found.loss - math.log(2)).abs().max() < 1e-4
    assert found.better.abs().max() < 1e-4 and found.worse.abs().max() < 1e-4


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_order_and_micro_batches_change_nothing(loss: str) -> None:
    model, pairs = shaken(tiny_model()), some_pairs(7)
    objective = preferring(model, loss, pairs)
    rows = rows_of(pairs)
    whole_P = objective.losses(model, rows, CPU)
    whole = gradient(model, whole_P.sum())
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    mixed_P = objective.losses(model, rows.take(order), CPU)
    torch.testing.assert_close(mixed_P, whole_P[torch.from_numpy(order)], rtol=1e-4, atol=1e-4)
    parts = torch.zeros_like(whole)
    for first, stop in ((0, 1), (1, 4), (4, 7)):
        parts += gradient(model, objective.losses(model, rows.part(first, stop), CPU).sum())
    assert float((parts - whole).norm() / whole.norm()) < 1e-5
    split = [objective.weight(rows.part(first, first + 1)) for first in range(7)]
    assert sum(split) == pytest.approx(objective.weight(rows))


def test_weights_scale_pairs() -> None:
    model, pairs = shaken(tiny_model()), some_pairs()
    objective = preferring(model, "dpo", pairs)
    plain = [replace(pair, weight=1.0) for pair in pairs]
    with torch.no_grad():
        weighted_P = objective.losses(model, rows_of(pairs), CPU)
        plain_P = objective.losses(model, rows_of(plain), CPU)
    weight_P = torch.tensor([pair.weight for pair in pairs])
    torch.testing.assert_close(weighted_P, plain_P * weight_P)
    assert objective.weight(rows_of(pairs)) == pytest.approx(float(weight_P.sum()))


# --- Metrics of pairs --------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_figures_are_weighted_means(loss: str) -> None:
    model, pairs = shaken(tiny_model()), some_pairs()
    objective = preferring(model, loss, pairs)
    rows = rows_of(pairs)
    with torch.no_grad():
        for first in range(0, 6, 2):
            objective.losses(model, rows.part(first, first + 2), CPU)
        sequences = [
            (float(alone(model, p.prompt, p.better)), float(alone(model, p.prompt, p.worse)))
            for p in pairs
        ]
    figures = {
        name: total / weight for name, (total, weight) in objective.metric_sums.drain().items()
    }
    if objective.reference is not None:
        known = torch.stack(objective.reference(rows), dim=1).tolist()
        rewards = [
            (0.3 * (w - a), 0.3 * (x - b)) for (w, x), (a, b) in zip(sequences, known, strict=True)
        ]
    else:
        rewards = [
            (0.3 * w / len(p.better), 0.3 * x / len(p.worse))
            for (w, x), p in zip(sequences, pairs, strict=True)
        ]
    weights = [pair.weight for pair in pairs]

    def mean(values: Sequence[float]) -> Any:
        return pytest.approx(np.average(values, weights=weights), rel=1e-3, abs=1e-4)

    assert figures == {
        "reward/accuracy": mean([w > x for w, x in rewards]),
        "reward/margin": mean([w - x for w, x in rewards]),
        "reward/chosen": mean([w for w, _ in rewards]),
        "reward/rejected": mean([x for _, x in rewards]),
        "policy/log_prob_accuracy": mean([w > x for w, x in sequences]),
        "policy/log_prob_chosen": mean([w for w, _ in sequences]),
        "policy/log_prob_rejected": mean([x for _, x in sequences]),
    }


def test_level_answers_are_half_right() -> None:
    model, pairs = tiny_model(), [Pair([1, 2], [3, 4], [3, 4])]
    objective = preferring(model, "dpo", pairs)
    objective.losses(model, rows_of(pairs), CPU)
    figures = objective.metric_sums.drain()
    assert figures["reward/accuracy"] == figures["policy/log_prob_accuracy"] == [0.5, 1.0]


# --- No rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "family"),
    [
        *((loss, "llama") for loss in (*sorted(LOSSES), "reward")),
        ("dpo", "gpt2"),
        ("reward", "gpt2"),
    ],
)
def test_no_rows_are_a_forward_pass_with_zero_loss(loss: str, family: str) -> None:
    """A rank without rows must still gather all weights under ZeRO-3: the head's, the reference's."""
    none = Rows.empty(40, "uint16", "preference")
    asked: list[int] = []

    def reference(rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(rows))
        return torch.zeros(len(rows)), torch.zeros(len(rows))

    objective: PreferredAnswers | RewardPairs
    if loss == "reward":
        model = classifier(family)
        objective = RewardPairs(model.score, 1.0, 0.1)
    else:
        model = tiny_model(family)
        known = reference if loss in NEEDS_REFERENCE else None
        objective = PreferredAnswers(model.get_output_embeddings(), loss, 0.3, 0.1, 0.4, known)
    losses_P = objective.losses(model, none, CPU)
    assert losses_P.tolist() == [0.0]
    assert objective.weight(none) == 0.0
    losses_P.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert asked == ([0] if loss in NEEDS_REFERENCE else [])
    if loss != "reward":  # as a reference's
        pair = answer_log_probs(
            model, model.get_output_embeddings(), PairSequences.from_rows(none), CPU
        )
        assert [one.tolist() for one in pair] == [[0.0], [0.0]]
    assert all(sums == [0.0, 0.0] for sums in objective.metric_sums.drain().values())


# --- Reward models -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_transformers_own(family: str) -> None:
    """Compare with each conversation alone, and with all of them padded with an unused token."""
    spare = VOCAB_SIZE - 1
    model = classifier(family, spare)
    pairs = some_pairs()
    pairs = [
        Pair(*([t % spare for t in part] for part in (p.prompt, p.better, p.worse))) for p in pairs
    ]
    sequences = PairSequences.from_rows(rows_of(pairs))
    with torch.no_grad():
        score_S = torch.cat(RewardPairs(model.score).scores(model, sequences, CPU))
        attention_SL = (torch.arange(sequences.tokens.shape[1]) < sequences.length[:, None]).long()
        padded_SL = sequences.tokens.masked_fill(attention_SL == 0, spare)
        together_S = model(input_ids=padded_SL, attention_mask=attention_SL).logits[:, 0]
        order = [p.conversations[side] for side in (0, 1) for p in pairs]
        alone_S = torch.cat([model(input_ids=torch.tensor([ids])).logits[0] for ids in order])
    torch.testing.assert_close(score_S, together_S, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score_S, alone_S, rtol=1e-5, atol=1e-5)


def test_an_answer_that_ends_in_the_padding_token_is_scored_at_its_end() -> None:
    """transformers looks for the last token that isn't padding, and finds the one before."""
    model = classifier("llama", PAD)
    sequences = PairSequences.from_rows(rows_of([Pair([1, 2], [3, PAD], [4, 5, 6])]))
    with torch.no_grad():
        found = float(RewardPairs(model.score).scores(model, sequences, CPU)[0])
        hidden_TH = model.model(input_ids=torch.tensor([[1, 2, 3, PAD]])).last_hidden_state[0]
        at_T = model.score(hidden_TH)[:, 0].tolist()
        theirs = float(model(input_ids=sequences.tokens).logits[0])
    assert found == pytest.approx(at_T[3], rel=1e-5)
    assert theirs == pytest.approx(at_T[2], rel=1e-5) and abs(theirs - found) > 1e-3


def test_reward_losses_and_gradients_are_bradley_and_terrys() -> None:
    model, pairs = classifier("llama"), some_pairs()
    objective = RewardPairs(model.score, margin_scale=0.5, center_rewards=0.05)
    rows = rows_of(pairs)
    found_P = objective.losses(model, rows, CPU)
    found = gradient(model, found_P.sum())

    def score(ids: list[int]) -> torch.Tensor:
        hidden_TH = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        return model.score(hidden_TH)[-1, 0].double()

    scores = [[score(ids) for ids in pair.conversations] for pair in pairs]
    terms = [
        p.weight * (-torch.sigmoid(w - x - 0.5 * p.margin).log() + 0.05 * (w + x) ** 2)
        for p, (w, x) in zip(pairs, scores, strict=True)
    ]
    expected_P = torch.stack(terms)
    torch.testing.assert_close(found_P.double(), expected_P, rtol=1e-4, atol=1e-5)
    expected = gradient(model, expected_P.sum())
    assert float((found - expected).norm() / expected.norm()) < 1e-4
    parts = torch.zeros_like(found)
    for first in (4, 0, 2):
        parts += gradient(model, objective.losses(model, rows.part(first, first + 2), CPU).sum())
    assert float((parts - found).norm() / found.norm()) < 1e-5
    total, weight = objective.metric_sums.drain()["reward/accuracy"]
    right = sum(p.weight for p, (w, x) in zip(pairs, scores, strict=True) if w > x)
    assert total / 2 == pytest.approx(right) and weight / 2 == pytest.approx(objective.weight(rows))
