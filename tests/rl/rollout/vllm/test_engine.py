"""vLLM samples from the policy's own distribution, whatever it makes of the weights that it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raymill.rl.rollout.engine import RolloutError
from raymill.rl.rollout.vllm_engine import VllmEngine, VllmSpec
from raymill.rl.rollout.weights import buckets, converted, weights_digest
from rl.rollout.tiny import POSITIONS, SAMPLING, VOCAB_SIZE, batches, prompts, weights_of
from rl.rollout.vllm.models import (
    folder_of,
    full_pass,
    load_weights,
    log_probs_of,
    log_softmax,
    small_model,
    spec_of,
)

pytestmark = pytest.mark.vllm
Build = Callable[[VllmSpec], VllmEngine]


def worst(engine: VllmEngine, *models: Any) -> list[float]:
    """The largest difference from each one's log-probabilities, over a step's answers."""
    found = [0.0] * len(models)
    for batch in batches():
        answers = engine.generate(batch.prompts, SAMPLING, batch.seeds)
        for prompt, answer in zip(batch.prompts, answers, strict=True):
            for place, model in enumerate(models):
                expected = log_probs_of(model, prompt, answer.ids, SAMPLING.temperature)
                found[place] = max(found[place], np.abs(answer.log_probs - expected).max())
    return found


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("llama", True), ("qwen3", False), ("gpt2", True)]
)
def test_log_probs_are_those_of_a_full_forward_pass(
    tmp_path: Path, build: Build, family: str, tied: bool
) -> None:
    model = small_model(family, tied)
    engine = build(spec_of(model, tmp_path))
    load_weights(engine, model)
    assert engine.digest() == weights_digest(weights_of(model))
    assert worst(engine, model)[0] < 1e-4
    other = small_model(family, tied, seed=2)
    load_weights(engine, other)
    assert engine.digest() == weights_digest(weights_of(other)) != weights_digest(weights_of(model))
    right, wrong = worst(engine, other, model)
    assert right < 1e-4
    assert wrong > 1


def test_bf16_is_as_exact_as_transformers_in_bf16(tmp_path: Path, build: Build, model: Any) -> None:
    rounded = small_model()
    rounded.load_state_dict(dict(converted(weights_of(model), "bf16")))
    half = small_model().bfloat16()
    half.load_state_dict(rounded.state_dict())
    engine = build(spec_of(model, tmp_path, dtype="bf16"))
    with pytest.raises(RolloutError, match=r"as float32 .* has bfloat16"):
        load_weights(engine, model)
    load_weights(engine, model, "bf16")
    assert engine.digest() == weights_digest(weights_of(half))
    ours, theirs = [], []
    for batch in batches():
        found = engine.generate(batch.prompts, SAMPLING, batch.seeds)
        for prompt, completion in zip(batch.prompts, found, strict=True):
            asked = prompt, completion.ids, SAMPLING.temperature
            exact = log_probs_of(rounded, *asked)
            ours += np.abs(completion.log_probs - exact).tolist()
            theirs += np.abs(log_probs_of(half, *asked) - exact).tolist()
    assert np.mean(ours) < 2 * np.mean(theirs)
    assert np.max(ours) < 2 * np.max(theirs)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_fp32_in_bf16(tmp_path: Path, build: Build, tied: bool) -> None:
    model = small_model("llama", tied)
    engine = build(spec_of(model, tmp_path, dtype="bf16"))
    load_weights(engine, model, "bf16")
    weight = model.get_output_embeddings().weight.detach().bfloat16().double()
    hidden = (10 * torch.randn(3, weight.shape[1])).bfloat16()

    def logits_of(inside: Any) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = inside.compute_logits(hidden)
        return logits

    [logits] = engine.llm.apply_model(logits_of)
    exact = hidden.double() @ weight.T
    assert logits.dtype == torch.float32
    assert (logits[:, : len(weight)].double() - exact).abs().max() < 1e-5 * exact.abs().max()


def test_new_weights_replace_the_old(engine: VllmEngine, model: Any) -> None:
    batch = batches()[0]
    first = engine.generate(batch.prompts, SAMPLING, batch.seeds)
    nudged = small_model()
    with torch.no_grad():  # of each kind of weight
        for name, parameter in nudged.named_parameters():
            if "layers.1" in name or "layers" not in name:
                parameter.add_(torch.randn(parameter.shape) * 0.05)
    load_weights(engine, nudged)
    assert engine.generate(batch.prompts, SAMPLING, batch.seeds) != first
    assert worst(engine, nudged)[0] < 1e-4
    load_weights(engine, model)
    assert engine.generate(batch.prompts, SAMPLING, batch.seeds) == first


def test_one_weight_alone_arrives(engine: VllmEngine, model: Any) -> None:
    """Change weights of each kind: a missed one would leave the log-probabilities unchanged."""
    for name in dict(weights_of(model)):
        if ".0." in name:
            continue
        changed = small_model()
        with torch.no_grad():
            changed.get_parameter(name).mul_(1.5)
        load_weights(engine, changed)
        right, wrong = worst(engine, changed, model)
        assert right < 1e-4, name
        assert wrong > 1e-2, name


def test_an_answer_ends_with_a_stop_token_or_at_its_limit(engine: VllmEngine) -> None:
    lengths = set()
    for batch in batches():
        for completion in engine.generate(batch.prompts, SAMPLING, batch.seeds):
            assert len(completion.log_probs) == len(completion.ids)
            assert not set(completion.ids[:-1]) & set(SAMPLING.stop_ids)
            stopped = completion.ids[-1] in SAMPLING.stop_ids
            assert completion.finish == ("stop" if stopped else "length")
            assert stopped or len(completion.ids) == SAMPLING.max_new_tokens
            lengths.add(len(completion.ids))
    assert len(lengths) > 3


def test_nothing_in_the_models_folder_decides_how_is_sampled(
    tmp_path: Path, build: Build, engine: VllmEngine, model: Any
) -> None:
    batch = batches()[0]
    expected = engine.generate(batch.prompts, SAMPLING, batch.seeds)
    common = int(np.bincount([token for c in expected for token in c.ids[:-1]]).argmax())
    spec = spec_of(model, tmp_path)
    generation = {"eos_token_id": common, "temperature": 0.1, "top_k": 2, "repetition_penalty": 9.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": common}))
    strange = build(spec)
    load_weights(strange, model)
    assert strange.generate(batch.prompts, SAMPLING, batch.seeds) == expected


def test_answers_depend_on_prompt_and_seed_alone(engine: VllmEngine) -> None:
    batch = batches()[0]
    first = engine.generate(batch.prompts, SAMPLING, batch.seeds)
    engine.generate(batches(1)[0].prompts, SAMPLING, batches(1)[0].seeds)
    assert engine.generate(batch.prompts, SAMPLING, batch.seeds) == first, "bit for bit"
    for prompt, seed, completion in zip(batch.prompts, batch.seeds, first, strict=True):
        (alone,) = engine.generate([prompt], SAMPLING, [seed])
        assert alone.ids == completion.ids
        np.testing.assert_allclose(alone.log_probs, completion.log_probs, atol=1e-5)
    near = [batch.seeds[0] ^ bit for bit in (0, 1, 2**16, 2**31)]  # a CPU's generator takes 32
    answers = engine.generate([batch.prompts[0]] * len(near), SAMPLING, near)
    assert len({answer.ids for answer in answers}) == len(near)
    assert engine.generate([], SAMPLING, []) == []


def test_long_prompts_shared_or_not(tmp_path: Path, build: Build) -> None:
    """Prompts of several blocks, so that a shared block would be in the cache; more than fit into a pass."""
    model = small_model()
    model.config.max_position_embeddings = 400
    engine = build(spec_of(model, tmp_path, max_tokens=320, batch=48))
    load_weights(engine, model)
    drawn = np.random.default_rng(1).integers(1, VOCAB_SIZE, (48, 300)).tolist()
    asked, seeds = [*drawn[:40], *drawn[40:42] * 8], list(range(56))
    found = engine.generate(asked, SAMPLING, seeds)
    assert engine.generate(asked, SAMPLING, seeds) == found
    for prompt, completion in list(zip(asked, found, strict=True))[::4]:
        expected = log_probs_of(model, prompt, completion.ids, SAMPLING.temperature)
        np.testing.assert_allclose(completion.log_probs, expected, atol=1e-4)
    for prompt, seed, completion in list(zip(asked, seeds, found, strict=True))[-3:]:
        assert engine.generate([prompt], SAMPLING, [seed])[0].ids == completion.ids
    other = small_model(seed=2)
    load_weights(engine, other)
    (completion,) = engine.generate(asked[-1:], SAMPLING, [1])
    expected = log_probs_of(other, asked[-1], completion.ids, SAMPLING.temperature)
    np.testing.assert_allclose(completion.log_probs, expected, atol=1e-4)


def test_log_probs_are_of_the_truncated_distribution(engine: VllmEngine, model: Any) -> None:
    sampling = replace(SAMPLING, top_p=0.7, temperature=1.3)
    cut = 0
    for batch in batches():
        found = engine.generate(batch.prompts, sampling, batch.seeds)
        for prompt, completion in zip(batch.prompts, found, strict=True):
            every = np.exp(log_softmax(full_pass(model, prompt, completion.ids) / 1.3))
            for row, token, log_prob in zip(
                every, completion.ids, completion.log_probs, strict=True
            ):
                falling = np.argsort(-row)
                kept = falling[: np.searchsorted(np.cumsum(row[falling]), 0.7) + 1]
                assert token in kept
                assert log_prob == pytest.approx(np.log(row[token] / row[kept].sum()), abs=1e-4)
                cut += len(kept) < VOCAB_SIZE / 2
    assert cut > 50


def test_temperature_zero_takes_the_likeliest(engine: VllmEngine, model: Any) -> None:
    sampling, batch = replace(SAMPLING, temperature=0.0), batches()[0]
    found = engine.generate(batch.prompts, sampling, batch.seeds)
    for prompt, completion in zip(batch.prompts, found, strict=True):
        assert completion.ids == tuple(full_pass(model, prompt, completion.ids).argmax(axis=-1))
        assert completion.log_probs == (0.0,) * len(completion.ids)
    with pytest.raises(RolloutError, match=r"temperature=0.005: vLLM would sample at 0.01"):
        engine.generate(batch.prompts, replace(SAMPLING, temperature=0.005), batch.seeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lm_head.weight": None}, "the first missing one is lm_head.weight"),
        ({"base_model.x": torch.zeros(2)}, "sent base_model.x, which the sampling model doesn't have"),
        ({"model.norm.weight": torch.zeros(0)}, r"as float32 \[0\], .* \[64\]; build both"),
        ({"model.layers.0.self_attn.k_proj.weight": torch.zeros(32, 64).half()}, "as float16"),
    ],
)  # fmt: skip
def test_half_a_model_does_not_sample_and_spoils_nothing(
    engine: VllmEngine, model: Any, change: dict[str, Any], message: str
) -> None:
    batch = batches()[0]
    expected = engine.generate(batch.prompts, SAMPLING, batch.seeds)
    sent = {
        name: tensor
        for name, tensor in (dict(weights_of(model)) | change).items()
        if tensor is not None
    }
    with pytest.raises(RolloutError, match=message):
        engine.load(buckets(sent.items()))
    for refused in (engine.digest, lambda: engine.generate(batch.prompts, SAMPLING, batch.seeds)):
        with pytest.raises(RolloutError, match="no weights yet"):
            refused()
    load_weights(engine, model)
    assert engine.generate(batch.prompts, SAMPLING, batch.seeds) == expected


def test_an_error_of_what_brings_the_weights_is_the_callers(engine: VllmEngine, model: Any) -> None:
    def lost() -> Any:
        yield from list(buckets(weights_of(model), 20_000))[:3]
        raise TimeoutError("the object store")

    with pytest.raises(TimeoutError, match="the object store"):
        engine.load(lost())
    load_weights(engine, model)
    assert worst(engine, model)[0] < 1e-4


def test_an_extended_vocabulary(tmp_path: Path, build: Build) -> None:
    model = small_model()
    folder = folder_of(model, tmp_path)
    model.resize_token_embeddings(VOCAB_SIZE + 8, mean_resizing=False)
    with torch.no_grad():  # the new ones are likely
        model.lm_head.weight[VOCAB_SIZE:] = model.lm_head.weight[:8] * 1.5
    spec = replace(spec_of(small_model(), tmp_path), folder=folder, vocab_size=VOCAB_SIZE + 8)
    engine = build(spec)
    load_weights(engine, model)
    assert worst(engine, model)[0] < 1e-4
    batch = batches()[0]
    found = engine.generate(batch.prompts, SAMPLING, batch.seeds)
    assert any(token >= VOCAB_SIZE for completion in found for token in completion.ids)


def test_a_prompt_is_never_cut(engine: VllmEngine) -> None:
    fits = POSITIONS - SAMPLING.max_new_tokens
    (completion,) = engine.generate([[1] * fits], replace(SAMPLING, stop_ids=()), [1])
    assert len(completion.ids) == SAMPLING.max_new_tokens
    with pytest.raises(RolloutError, match=f"{fits + 1} tokens and max_new_tokens=16 need 65"):
        engine.generate([[1] * (fits + 1)], SAMPLING, [1])


def test_more_answers_than_there_is_room_for_wait(tmp_path: Path, build: Build, model: Any) -> None:
    narrow = build(spec_of(model, tmp_path, batch=2))
    load_weights(narrow, model)
    asked = list(prompts().values()) * 3
    found = narrow.generate(asked, SAMPLING, range(len(asked)))
    for prompt, completion in zip(asked, found, strict=True):
        expected = log_probs_of(model, prompt, completion.ids, SAMPLING.temperature)
        np.testing.assert_allclose(completion.log_probs, expected, atol=1e-4)
