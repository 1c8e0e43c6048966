"""Models in bf16 whose heads don't round: log-probabilities, losses, scores and draws against the head in
float64 on the very hidden states that it was given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification

from model.planned import planned
from objective.test_pairs import rows_of, some_pairs
from raymill.generate.batch import complete
from raymill.generate.modes import mode_of
from raymill.generate.sampling import sample
from raymill.model.parent import scalar_head, with_adapters
from raymill.objective.forward import scores_at
from raymill.objective.heads import Fp32Head
from raymill.objective.pairs import PairSequences, PreferredAnswers, RewardPairs, answer_log_probs
from raymill.rl.objective import Critic, PolicyGradient
from raymill.rl.reward.model import NO_SAMPLING, RewardModelEngine
from raymill.rl.rollout_batch import token_log_probs
from raymill.schema.sections import LoraConfig
from rl.rollout import tiny
from rl.test_objective import PLAIN, sampled
from sections import plain

CPU = torch.device("cpu")
NEW_IDS = (5, 9)
TOLERANCE = 1e-5  # nats a token


def in_bf16(model: Any) -> Any:
    """Convert parameters alone, as training does."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model.eval()


@cache
def built(kind: str) -> Any:
    family, _, more = kind.partition(" ")
    model = tiny.tiny_model(family, tied=more == "tied")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(16)  # logits of some tens
    if more == "adapters":
        model = with_adapters(planned(model), plain(LoraConfig, rank=2), NEW_IDS, 7).whole()
    return in_bf16(model)


KINDS = ("llama", "llama tied", "qwen3", "gpt2 tied", "llama adapters")


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Any:
    return copy.deepcopy(built(request.param))


def build_scalar_model(adapters: bool = False) -> Any:
    config = AutoConfig.for_model(**tiny.tiny_model().config.to_dict())
    config.num_labels, config.pad_token_id = 1, 0
    torch.manual_seed(3)
    model: Any = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.score.weight.mul_(40)
    if adapters:
        model = with_adapters(planned(model), plain(LoraConfig, rank=2), (), 7, "SEQ_CLS").whole()
    return in_bf16(model)


@contextmanager
def watched(head: torch.nn.Module) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """(what the head makes in float64 of what it is given, what it gives), pass by pass."""
    exact = copy.deepcopy(head).double()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(_module: Any, inputs: Any, output: torch.Tensor) -> None:
        with torch.no_grad():
            seen.append((exact(inputs[0].double()), output.detach()))

    handle = head.register_forward_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def log_probs(logits_NV: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    return torch.log_softmax(logits_NV.double() / temperature, dim=-1)


def at(found_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    return found_BT[mask_BT > 0].double()


def test_a_policys_log_probs_and_entropies(model: Any) -> None:
    rollouts, temperature = sampled(), 0.7
    head = model.get_output_embeddings()
    with torch.no_grad(), watched(head) as seen:
        found_BT, entropy_BT = token_log_probs(model, head, rollouts, temperature, CPU)
    [(exact_NV, given_NV)] = seen
    assert given_NV.dtype == found_BT.dtype == torch.float32
    assert exact_NV.abs().max() > 20, "logits that bf16 would round"
    expected_NV = log_probs(exact_NV, temperature)
    target_N = rollouts.tokens[:, 1:][rollouts.mask > 0]
    expected_N = expected_NV.gather(1, target_N[:, None])[:, 0]
    assert (at(found_BT, rollouts.mask) - expected_N).abs().max() < TOLERANCE * 20
    entropy_N = -(expected_NV.exp() * expected_NV).sum(dim=1)
    assert (at(entropy_BT, rollouts.mask) - entropy_N).abs().max() < TOLERANCE * 20
    rounded_N = log_probs(exact_NV.bfloat16(), temperature).gather(1, target_N[:, None])[:, 0]
    assert (rounded_N - expected_N).abs().max() > 1e-2, "the test can see what rounding does"


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo", "orpo"])
def test_losses_of_pairs(loss: str) -> None:
    """DPO losses of policy and reference, from float64 logits, by `LOSSES`."""
    from raymill.objective.preferences import LOSSES, PairLogProbs

    rows = rows_of(some_pairs())
    sequences = PairSequences.from_rows(rows)
    models = [copy.deepcopy(built(kind)) for kind in ("llama", "qwen3")]
    exact: list[torch.Tensor] = []
    for one in models:
        head = one.get_output_embeddings()
        with torch.no_grad(), watched(head) as seen:
            answer_log_probs(one, head, sequences, CPU)
        row_N, column_N = torch.nonzero(sequences.answer[:, 1:], as_tuple=True)
        chosen_N = log_probs(seen[0][0]).gather(1, sequences.tokens[row_N, column_N + 1][:, None])
        zero_S = torch.zeros(len(sequences.tokens), dtype=torch.float64)
        exact.append(zero_S.index_add(0, row_N, chosen_N[:, 0]))
    length_S = sequences.answer[:, 1:].sum(dim=1)
    pairs = PairLogProbs(*exact[0].chunk(2), *exact[1].chunk(2), *length_S.chunk(2))
    expected_P = LOSSES[loss](pairs, 0.1, 0.0, 0.5)

    policy, reference = (one.get_output_embeddings() for one in models)
    objective = PreferredAnswers(
        policy, loss, 0.1, 0.0, 0.5,
        lambda rows: answer_log_probs(models[1], reference, PairSequences.from_rows(rows), CPU)
        if loss in ("dpo", "ipo") else (torch.zeros(1), torch.zeros(1)),
    )  # fmt: skip
    with torch.no_grad():
        found_P = objective.compare(models[0], rows, CPU).loss
    torch.testing.assert_close(found_P.double(), expected_P, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
def test_four_thousand_answers_have_as_many_scores(adapters: bool) -> None:
    model = build_scalar_model(adapters)
    head = scalar_head(model)
    tokens_SL = torch.cartesian_prod(torch.arange(64), torch.arange(64))
    place_S = torch.ones(len(tokens_SL), dtype=torch.long)
    with torch.no_grad(), watched(head) as seen:
        score_S = scores_at(model, head, tokens_SL, place_S, CPU)
    exact_S = seen[0][0][:, 1, 0]
    assert score_S.dtype == torch.float32
    assert (score_S.double() - exact_S).abs().max() < 1e-5 * float(exact_S.abs().max())
    assert len(score_S.unique()) > 4000
    assert len(exact_S.bfloat16().unique()) < 2000, "the test can see what rounding does"


def test_losses_of_reward_models_and_critics() -> None:
    rows = rows_of(some_pairs())
    model = build_scalar_model()
    head = scalar_head(model)
    with torch.no_grad(), watched(head) as seen:
        found = RewardPairs(head, 1.0, 0.01).compare(model, rows, CPU)
    sequences = PairSequences.from_rows(rows)
    exact_S = seen[0][0][torch.arange(len(sequences.length)), sequences.length - 1, 0]
    better_P, worse_P = exact_S.chunk(2)
    expected_P = (
        -F.logsigmoid(better_P - worse_P - sequences.margin) + 0.01 * (better_P + worse_P) ** 2
    )
    torch.testing.assert_close(found.loss.double(), expected_P, rtol=1e-5, atol=1e-6)

    rollouts = sampled()
    with torch.no_grad(), watched(head) as seen:
        value_BT = Critic(head, None).values(model, rollouts, CPU)
    exact_BT = seen[0][0][:, :-1, 0]
    torch.testing.assert_close(value_BT.double(), exact_BT, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kl", ["none", "loss"])
def test_the_loss_of_reinforcement_learning(kl: str) -> None:
    """The clipped surrogate and the distance to the reference, from float64 logits."""
    model = copy.deepcopy(built("llama"))
    head = model.get_output_embeddings()
    rollouts = sampled()
    with torch.no_grad(), watched(head) as seen:
        token_log_probs(model, head, rollouts, 1.0, CPU)
    target_N = rollouts.tokens[:, 1:][rollouts.mask > 0]
    now_N = log_probs(seen[0][0]).gather(1, target_N[:, None])[:, 0]
    random = torch.Generator().manual_seed(1)
    old_N = now_N + 0.2 * torch.randn(len(now_N), generator=random, dtype=torch.float64)
    reference_N = now_N + 0.2 * torch.randn(len(now_N), generator=random, dtype=torch.float64)
    advantage_N = torch.randn(len(now_N), generator=random, dtype=torch.float64)
    ratio_N = (now_N - old_N).exp()
    loss_N = -torch.minimum(ratio_N * advantage_N, ratio_N.clamp(0.8, 1.2) * advantage_N)
    if kl == "loss":
        loss_N = loss_N + 0.3 * (now_N - reference_N) ** 2 / 2

    def laid(values_N: torch.Tensor) -> torch.Tensor:
        return torch.zeros(rollouts.mask.shape).masked_scatter(rollouts.mask > 0, values_N.float())

    asked = replace(PLAIN, kl=kl, kl_estimator="k2")
    rows = replace(
        rollouts, old=laid(old_N), reference=laid(reference_N), advantage=laid(advantage_N),
        kl_coefficient=0.3,
    )  # fmt: skip
    with torch.no_grad():
        found = PolicyGradient(head, asked, 1.0, 8).losses(model, rows, CPU).sum()
    assert float(found) == pytest.approx(float(loss_N.sum()), rel=1e-4, abs=1e-3)


def test_gradients_are_rounded_once() -> None:
    """Gradient of the head's weights, from the same hidden states in float64."""
    model = copy.deepcopy(built("llama"))
    head = model.get_output_embeddings()
    rollouts = sampled()
    hidden: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, inputs: hidden.append(inputs[0]))
    found_BT, _ = token_log_probs(model, head, rollouts, 1.0, CPU)
    handle.remove()
    [gradient] = torch.autograd.grad(found_BT.sum(), head.weight)
    assert gradient.dtype == torch.bfloat16
    at_BTN = hidden[0].detach().double()
    states_NH = at_BTN.reshape(-1, at_BTN.shape[-1])[(rollouts.mask > 0).flatten().nonzero()[:, 0]]
    weight = head.weight.detach().double().requires_grad_()
    target_N = rollouts.tokens[:, 1:][rollouts.mask > 0]
    picked_N1 = log_probs(F.linear(states_NH, weight)).gather(1, target_N[:, None])
    [exact] = torch.autograd.grad(picked_N1.sum(), weight)
    assert float((gradient.double() - exact).norm() / exact.norm()) < 2**-8


def drawn_by_batch(model: Any) -> list[float]:
    [answer] = complete(
        model, [[7, 8, 9]], max_new_tokens=12, temperature=0.9, top_p=1.0, seeds=[4],
        stop_ids=(), batch_size=1, log_probs=True,
    )  # fmt: skip
    return list(answer.log_probs)


def drawn_one_by_one(model: Any) -> list[float]:
    tokens = sample(
        model, [7, 8, 9], max_new_tokens=12, temperature=0.9, top_p=1.0,
        seed=4, end_of_text_id=None,
    )  # fmt: skip
    return [0.0 for _ in tokens]


@pytest.mark.parametrize("draw", [drawn_by_batch, drawn_one_by_one])
def test_samplers_draw_from_fp32_logits(model: Any, draw: Callable[[Any], list[float]]) -> None:
    mode_of(model)  # which makes passes of its own, once
    with watched(model.get_output_embeddings()) as seen:
        found = draw(model)
    assert len(seen) == len(found) == 12
    for (exact_B1V, given_B1V), log_prob in zip(seen, found, strict=True):
        assert given_B1V.dtype == torch.float32
        worst = (given_B1V.double() - exact_B1V).abs().max()
        assert worst < TOLERANCE * float(exact_B1V.abs().max())
        if draw is drawn_by_batch:
            of_all_V = log_probs(exact_B1V[0, -1], 0.9)
            assert (of_all_V - log_prob).abs().min() < TOLERANCE * 20


def test_a_judges_scores_are_fp32() -> None:
    model = build_scalar_model()
    engine = RewardModelEngine(model, 1)
    engine.generate([[5]], NO_SAMPLING, [0])  # which tries the family, once
    with watched(scalar_head(model)) as seen:
        found = engine.generate([[5, 6], [7, 8, 9]], NO_SAMPLING, [0, 0])
    exact_SL = seen[0][0][..., 0]
    expected = [float(exact_SL[0, 1]), float(exact_SL[1, 2])]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_head_is_as_it_was_after_the_block() -> None:
    head = torch.nn.Linear(4, 3).bfloat16()
    given = torch.ones(2, 4, dtype=torch.bfloat16)
    wide, other = Fp32Head(head), Fp32Head(head)

    def fail() -> None:
        with wide:
            with other:
                assert head(given).dtype == torch.float32
            assert head(given).dtype == torch.float32
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
        assert head(given).dtype == torch.bfloat16
        assert "forward" not in vars(head)


def test_with_gradients_the_weights_are_those_of_now() -> None:
    head = torch.nn.Linear(4, 3, bias=False).bfloat16()
    given = torch.ones(1, 4, dtype=torch.bfloat16)
    with Fp32Head(head):
        before = head(given)
        with torch.no_grad():
            head.weight.mul_(2)
        after = head(given)
    assert torch.equal(after, 2 * before)
    assert torch.equal(after, head.weight.float().sum(dim=1)[None])
