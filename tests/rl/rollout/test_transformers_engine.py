"""Answers, and their log-probabilities, are those of transformers' own forward pass with these weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from raymill.errors import ConfigError
from raymill.rl.rollout.engine import RolloutError
from raymill.rl.rollout.transformers_engine import ModelSpec, TransformersEngine
from raymill.rl.rollout.weights import buckets, converted, weights_digest
from rl.rollout.tiny import (
    POSITIONS,
    SAMPLING,
    VOCAB_SIZE,
    batches,
    folder_of,
    prompts,
    tiny_model,
    weights_of,
)


def spec_of(model: Any, folder: Path) -> ModelSpec:
    return ModelSpec(folder_of(model, folder), VOCAB_SIZE, "sdpa", "fp32", 1)


def engine_with(model: Any, folder: Path) -> TransformersEngine:
    engine = spec_of(model, folder).build()
    engine.load(buckets(weights_of(model), 4096))
    return engine


def full_pass(model: Any, prompt: Any, answer: Any, temperature: float) -> np.ndarray:
    """[answer's tokens, vocabulary] log-probabilities, without cache, batch or padding."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1] / temperature, dim=-1).numpy()


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("llama", True), ("qwen3", False), ("gpt2", True)]
)
def test_log_probs_are_those_of_a_full_forward_pass(
    tmp_path: Path, family: str, tied: bool
) -> None:
    model = tiny_model(family, tied)
    engine = engine_with(model, tmp_path)
    assert engine.digest() == weights_digest(weights_of(model))
    lengths = set()
    for batch in batches():
        for prompt, completion in zip(
            batch.prompts, engine.generate(batch.prompts, SAMPLING, batch.seeds), strict=True
        ):
            every = full_pass(model, prompt, completion.ids, SAMPLING.temperature)
            expected = every[np.arange(len(completion.ids)), completion.ids]
            np.testing.assert_allclose(completion.log_probs, expected, atol=1e-5)
            stopped = completion.ids[-1] in SAMPLING.stop_ids
            assert completion.finish == ("stop" if stopped else "length")
            assert not set(completion.ids[:-1]) & set(SAMPLING.stop_ids)
            lengths.add(len(completion.ids))
    assert len(lengths) > 3


def test_log_probs_are_of_the_truncated_distribution(tmp_path: Path) -> None:
    model, sampling = tiny_model(), replace(SAMPLING, top_p=0.7, temperature=1.3)
    batch = batches()[0]
    for prompt, completion in zip(
        batch.prompts,
        engine_with(model, tmp_path).generate(batch.prompts, sampling, batch.seeds),
        strict=True,
    ):
        every = np.exp(full_pass(model, prompt, completion.ids, 1.3).astype(float))
        for row, token, log_prob in zip(every, completion.ids, completion.log_probs, strict=True):
            falling = np.argsort(-row)
            kept = falling[: np.searchsorted(np.cumsum(row[falling]), 0.7) + 1]
            assert token in kept
            assert log_prob == pytest.approx(np.log(row[token] / row[kept].sum()), abs=1e-5)


def test_new_weights_replace_the_old(tmp_path: Path) -> None:
    old, new = tiny_model(seed=1), tiny_model(seed=2)
    engine, batch = engine_with(old, tmp_path), batches()[0]
    first = engine.generate(batch.prompts, SAMPLING, batch.seeds)
    assert engine.generate(batch.prompts, SAMPLING, batch.seeds) == first
    engine.load(buckets(weights_of(new)))
    second = engine.generate(batch.prompts, SAMPLING, batch.seeds)
    assert second != first
    assert second == engine_with(new, tmp_path).generate(batch.prompts, SAMPLING, batch.seeds)


def test_merged_adapters_are_weights_like_others(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = tiny_model()
    spec = spec_of(base, tmp_path)
    torch.manual_seed(3)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    policy = get_peft_model(base, lora).eval()
    batch = batches()[0]
    prompt = list(batch.prompts[0])
    with torch.no_grad():
        expected = policy(input_ids=torch.tensor([prompt])).logits
    engine = spec.build()
    with pytest.raises(RolloutError, match="adapters are merged before"):
        engine.load(buckets(weights_of(policy)))
    engine.load(buckets(weights_of(policy.merge_and_unload())))
    with torch.no_grad():
        found = engine.model(input_ids=torch.tensor([prompt])).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_extended_vocabulary_and_bf16(tmp_path: Path) -> None:
    model = tiny_model()
    folder = folder_of(model, tmp_path / "parent")
    model.resize_token_embeddings(VOCAB_SIZE + 8, mean_resizing=False)
    model.save_pretrained(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    engine = ModelSpec(folder, VOCAB_SIZE + 8, "sdpa", "bf16", 1).build()
    with pytest.raises(RolloutError, match="as float32"):
        engine.load(buckets(weights_of(model)))
    engine.load(buckets(converted(weights_of(model), "bf16")))
    assert engine.digest() == weights_digest(weights_of(policy))
    prompt = torch.tensor([prompts()[0]])
    with torch.no_grad():
        assert torch.equal(engine.model(prompt).logits, policy(prompt).logits)


def test_half_a_model_does_not_sample(tmp_path: Path) -> None:
    model, batch = tiny_model(), batches()[0]
    engine = spec_of(model, tmp_path).build()
    with pytest.raises(RolloutError, match="no weights yet"):
        engine.generate(batch.prompts, SAMPLING, batch.seeds)
    engine.load(buckets(weights_of(model)))
    with pytest.raises(RolloutError, match="sent 20 of 21"):
        engine.load(buckets(list(weights_of(model))[:-1]))
    with pytest.raises(RolloutError, match="no weights yet"):
        engine.generate(batch.prompts, SAMPLING, batch.seeds)


def test_a_prompt_is_never_cut(tmp_path: Path) -> None:
    engine = engine_with(tiny_model(), tmp_path)
    fits = POSITIONS - SAMPLING.max_new_tokens
    engine.generate([[1] * fits], SAMPLING, [1])
    with pytest.raises(RolloutError, match=f"{fits + 1} tokens and max_new_tokens=16 need 65"):
        engine.generate([[1] * (fits + 1)], SAMPLING, [1])


def test_the_trainers_threads_are_left_alone(tmp_path: Path) -> None:
    model = tiny_model()
    engine = replace(spec_of(model, tmp_path), threads=2).build()
    engine.load(buckets(weights_of(model)))
    seen = []
    engine.model.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    engine.generate([[1]], SAMPLING, [1])
    assert set(seen) == {2}
    assert torch.get_num_threads() == 1


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't build the model of"):
        ModelSpec(str(tmp_path), 10, "sdpa", "fp32", 1).build()
