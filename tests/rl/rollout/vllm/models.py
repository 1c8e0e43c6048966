"""Models that are small, but have heads of 32 as vLLM's kernels for CPUs ask for, and what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymill.config import load
from raymill.model.build import build_model
from raymill.rl.rollout.vllm_engine import VllmEngine, VllmSpec
from raymill.rl.rollout.weights import buckets, converted
from rl.rollout.tiny import POSITIONS, VOCAB_SIZE, folder_of, weights_of


def small_model(family: str = "llama", tied: bool = False, seed: int = 1) -> Any:
    """2 layers, 64 wide; its logits are far apart."""
    arch = load("pretrain", ["experiment=tiny"]).arch
    arch = replace(
        arch, family=family, layers=2, hidden_size=64, heads=2,
        kv_heads=2 if family == "gpt2" else 1, head_dim=32, intermediate_size=96,
        max_positions=POSITIONS, tied_embeddings=tied,
    )  # fmt: skip
    model = build_model(arch, VOCAB_SIZE, None, seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
        if not tied:
            model.get_output_embeddings().weight.mul_(5)
    return model


def spec_of(model: Any, folder: Path, **changes: Any) -> VllmSpec:
    spec = VllmSpec(
        folder_of(model, folder), VOCAB_SIZE, "fp32", threads=1, batch=64, max_tokens=POSITIONS
    )
    return replace(spec, **changes)


def load_weights(engine: VllmEngine, model: Any, dtype: str = "fp32") -> None:
    engine.load(buckets(converted(weights_of(model), dtype), 20_000))


def full_pass(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> np.ndarray:
    """[answer's tokens, vocabulary] logits in float64, without cache, batch or padding."""
    with torch.no_grad():
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.double().numpy()


def log_softmax(logits: np.ndarray) -> np.ndarray:
    falling = logits - logits.max(axis=-1, keepdims=True)
    return falling - np.log(np.exp(falling).sum(axis=-1, keepdims=True))


def log_probs_of(
    model: Any, prompt: Sequence[int], answer: Sequence[int], temperature: float
) -> np.ndarray:
    """Return the log-probabilities of the answer's tokens, by transformers."""
    every = log_softmax(full_pass(model, prompt, answer) / temperature)
    return every[np.arange(len(answer)), list(answer)]
