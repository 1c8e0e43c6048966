"""Decoding by vLLM, compared with transformers' full passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from generate.engine.vllm.decoding import decode, greedy
from raymill.generate.engine.request import RequestError, SamplingParameters
from raymill.generate.engine.vllm_engine import VllmDecoder, VllmDecoderSpec
from rl.rollout.tiny import POSITIONS, VOCAB_SIZE, prompts
from rl.rollout.vllm.models import full_pass, log_softmax, small_model

pytestmark = pytest.mark.vllm

GREEDY = SamplingParameters(12, temperature=0)
PROMPT = [17, 4, 99, 60, 3]


def asked(count: int = 20) -> list[list[int]]:
    return list(prompts(0, count).values())


def test_greedy_answers_are_transformers(decoder: VllmDecoder, decoded: Any) -> None:
    found = decode(decoder, [(prompt, GREEDY) for prompt in asked()])
    for prompt, answer in zip(asked(), found, strict=True):
        assert answer.ids == greedy(decoded, prompt, 12)
        assert answer.finish == "length"
        assert answer.tokens[0].model is None
        assert answer.tokens[0].drawn is None
    assert not decoder.busy


def test_an_answer_ends_with_its_stop_token(decoder: VllmDecoder, decoded: Any) -> None:
    whole = greedy(decoded, PROMPT, 12)
    stop = whole[4]
    (answer,) = decode(decoder, [(PROMPT, replace(GREEDY, stop_ids=frozenset({stop})))])
    assert answer.ids == whole[: whole.index(stop) + 1]
    assert answer.finish == "stop"


def test_an_answer_ends_where_the_positions_end(decoder: VllmDecoder) -> None:
    prompt = [5] * (decoder.positions - 3)
    (answer,) = decode(decoder, [(prompt, GREEDY)])
    assert (len(answer.ids), answer.finish) == (3, "length")


def test_log_probs_are_of_the_models_own_distribution(decoder: VllmDecoder, decoded: Any) -> None:
    parameters = SamplingParameters(
        10,
        temperature=0.7,
        top_p=0.8,
        repetition_penalty=1.3,
        top_log_probs=3,
        prompt_log_probs=True,
    )
    found = decode(decoder, [(p, replace(parameters, seed=i)) for i, p in enumerate(asked(6))])
    for prompt, answer in zip(asked(6), found, strict=True):
        rows = log_softmax(full_pass(decoded, prompt, answer.ids))
        for row, token in zip(rows, answer.tokens, strict=True):
            assert token.model is not None
            assert token.drawn is None
            assert token.model.log_prob == pytest.approx(row[token.id], abs=1e-4)
            likeliest = np.argsort(-row)[:3].tolist()
            assert [other for other, _ in token.model.likeliest] == likeliest
            for other, log_prob in token.model.likeliest:
                assert log_prob == pytest.approx(row[other], abs=1e-4)
        assert answer.prompt is not None
        rows = log_softmax(full_pass(decoded, prompt[:1], prompt[1:]))
        for row, place, known in zip(rows, prompt[1:], answer.prompt, strict=True):
            assert known.log_prob == pytest.approx(row[place], abs=1e-4)
            assert len(known.likeliest) == 3


def test_log_probs_of_what_was_drawn_from(decoder: VllmDecoder, decoded: Any) -> None:
    plain = SamplingParameters(6, drawn_log_probs=True)
    cold = replace(plain, temperature=0)
    warm, sure = decode(decoder, [(PROMPT, plain), (PROMPT, cold)])
    rows = log_softmax(full_pass(decoded, PROMPT, warm.ids))
    for row, token in zip(rows, warm.tokens, strict=True):
        assert token.drawn == pytest.approx(row[token.id], abs=1e-4)
        assert token.model is None
    assert [token.drawn for token in sure.tokens] == [0.0] * 6
    with pytest.raises(RequestError) as refused:
        decoder.submit(PROMPT, replace(plain, temperature=0.5))
    assert refused.value.parameter == "drawn_log_probs"


def test_biases_and_penalties(decoder: VllmDecoder, decoded: Any) -> None:
    plain = greedy(decoded, PROMPT, 12)
    # Without its first token the answer is another one, whatever the weights.
    bias = {plain[0]: -50.0, 60: -3.0, 99: 2.5}

    def repetition(logits: np.ndarray, answer: list[int]) -> np.ndarray:
        seen = sorted({*PROMPT, *answer})
        logits[seen] = np.where(logits[seen] > 0, logits[seen] / 1.5, logits[seen] * 1.5)
        return logits

    def often(logits: np.ndarray, answer: list[int]) -> np.ndarray:
        counts = np.bincount(answer, minlength=len(logits))
        return logits - 0.9 * counts - 1.2 * (counts > 0)

    def biased(logits: np.ndarray, _: list[int]) -> np.ndarray:
        logits[list(bias)] += list(bias.values())
        return logits

    changes = {
        repetition: replace(GREEDY, repetition_penalty=1.5),
        often: replace(GREEDY, frequency_penalty=0.9, presence_penalty=1.2),
        biased: replace(GREEDY, logit_bias=bias),
    }
    found = decode(decoder, [(PROMPT, parameters) for parameters in changes.values()])
    for change, answer in zip(changes, found, strict=True):
        assert answer.ids == greedy(decoded, PROMPT, 12, change), change.__name__
        assert answer.ids != plain, change.__name__


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(8, temperature=1.5, top_k=4),
        SamplingParameters(8, temperature=1.5, min_p=0.2),
        SamplingParameters(8, temperature=1.5, top_p=0.5),
        SamplingParameters(8, temperature=1.5, top_k=6, min_p=0.1),
    ],
)
def test_only_what_is_kept_is_drawn(
    decoder: VllmDecoder, decoded: Any, parameters: SamplingParameters
) -> None:
    found = decode(decoder, [(PROMPT, replace(parameters, seed=seed)) for seed in range(40)])
    drawn: set[int] = set()
    for answer in found:
        for row, token in zip(full_pass(decoded, PROMPT, answer.ids), answer.ids, strict=True):
            chances = np.exp(log_softmax(row[None] / 1.5)[0])
            falling = np.sort(chances)[::-1]
            above = falling[falling > chances[token]]
            assert not parameters.top_k or len(above) < parameters.top_k
            assert chances[token] >= parameters.min_p * falling[0] - 1e-6
            assert above.sum() < parameters.top_p + 1e-6
            drawn.add(token)
    assert len(drawn) > 4
    assert len({tuple(answer.ids) for answer in found}) > 20


def test_tokens_depend_on_prompt_and_seed_alone(decoder: VllmDecoder) -> None:
    warm = SamplingParameters(12, temperature=1.2)
    together = decode(decoder, [(p, replace(warm, seed=i)) for i, p in enumerate(asked())])
    for place in (0, 7, 19):
        (alone,) = decode(decoder, [(asked()[place], replace(warm, seed=place))])
        assert alone.ids == together[place].ids


class Alternating:
    """Allows even tokens, then odd ones, by turns."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def allowed(self) -> torch.Tensor:
        return torch.arange(VOCAB_SIZE) % 2 == len(self.accepted) % 2

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_constrained_answers(decoder: VllmDecoder, decoded: Any) -> None:
    def alternating(logits: np.ndarray, answer: list[int]) -> np.ndarray:
        logits[np.arange(len(logits)) % 2 != len(answer) % 2] = -np.inf
        return logits

    constraints = [Alternating() for _ in range(3)]
    requests = [
        (p, replace(GREEDY, constraint=c)) for p, c in zip(asked(3), constraints, strict=True)
    ]
    # Neighbors without a constraint join and leave.
    requests += [(prompt, replace(GREEDY, max_new_tokens=3)) for prompt in asked(4)]
    found = decode(decoder, requests)
    for prompt, answer in zip(asked(3), found, strict=False):
        assert answer.ids == greedy(decoded, prompt, 12, alternating)
    for prompt, answer in zip(asked(4), found[3:], strict=True):
        assert answer.ids == greedy(decoded, prompt, 3)


def test_an_adapter_per_request(adapted_decoder: VllmDecoder, decoded: Any, adapter: Path) -> None:
    from peft import PeftModel

    assert adapted_decoder.adapters == ("terse",)
    adapted = PeftModel.from_pretrained(small_model(), str(adapter)).merge_and_unload()
    terse = replace(GREEDY, adapter="terse")
    found = decode(adapted_decoder, [(p, s) for p in asked(4) for s in (GREEDY, terse)])
    differing = 0
    for place, prompt in enumerate(asked(4)):
        own, others = found[2 * place].ids, found[2 * place + 1].ids
        assert own == greedy(decoded, prompt, 12)
        assert others == greedy(adapted, prompt, 12)
        differing += own != others
    assert differing
    with pytest.raises(RequestError, match="where it has adapters"):
        adapted_decoder.submit(PROMPT, replace(GREEDY, top_log_probs=0, prompt_log_probs=True))


def test_who_leaves_frees_the_slot(decoder: VllmDecoder) -> None:
    before = decoder.counts()
    keys = [decoder.submit(prompt, replace(GREEDY, max_new_tokens=50)) for prompt in asked(12)]
    assert decoder.counts().waiting == 12
    decoder.step()
    decoder.step()
    counts = decoder.counts()
    assert (counts.running, counts.waiting) == (counts.slots, 12 - counts.slots)
    for key in keys:
        decoder.cancel(key)
        decoder.cancel(key)
    assert not decoder.busy
    (answer,) = decode(decoder, [(PROMPT, GREEDY)])
    assert len(answer.ids) == 12
    after = decoder.counts()
    assert (after.running, after.waiting) == (0, 0)
    assert after.drawn - before.drawn >= 12 + counts.slots
    assert after.passes > before.passes


def test_a_second_turn_does_not_prefill_the_first_again(decoder: VllmDecoder, decoded: Any) -> None:
    first = np.random.default_rng(5).integers(1, VOCAB_SIZE, 3 * POSITIONS).tolist()
    (answer,) = decode(decoder, [(first, GREEDY)])
    before = decoder.counts()
    second = [*first, *answer.ids, 9, 8, 7]
    (answer,) = decode(decoder, [(second, GREEDY)])
    after = decoder.counts()
    reused = after.reused - before.reused
    assert reused >= 128
    assert after.prefilled - before.prefilled == len(second) - reused
    assert answer.ids == greedy(decoded, second, 12)


@pytest.mark.parametrize(
    ("prompt", "parameters", "name", "message"),
    [
        ([], GREEDY, "prompt", "the prompt is empty"),
        ([1] * 256, GREEDY, "prompt", "has 256 tokens, and the model 256 positions"),
        (PROMPT, replace(GREEDY, temperature=0.005), "temperature", "would sample at 0.01"),
        (PROMPT, SamplingParameters(4, min_p=0.1, top_p=0.9), "min_p", "in another order"),
        (PROMPT, replace(GREEDY, adapter="x"), "adapter", "there is no adapter 'x'; there is: none"),
        (PROMPT, replace(GREEDY, prompt_log_probs=True), "prompt_log_probs", "needs top_log_probs"),
    ],
)  # fmt: skip
def test_what_it_would_do_differently_is_refused_by_name(
    decoder: VllmDecoder,
    prompt: Sequence[int],
    parameters: SamplingParameters,
    name: str,
    message: str,
) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        decoder.submit(prompt, parameters)
    assert refused.value.parameter == name
    assert not decoder.busy


def test_without_constraints_over_several_devices(spec: VllmDecoderSpec) -> None:
    shared = VllmDecoder(None, replace(spec, tensor_parallel=2))
    with pytest.raises(RequestError, match="tensor_parallel=2"):
        shared.submit(PROMPT, replace(GREEDY, constraint=Alternating()))
