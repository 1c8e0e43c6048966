"""A model small enough to be sampled from in milliseconds, and steps of prompts for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymill.config import load
from raymill.model.build import build_model
from raymill.rl.rollout.engine import Generation, PromptBatch, Sampling, plan_batches
from raymill.rl.rollout.weights import saved_weights

VOCAB_SIZE = 128
POSITIONS = 64
SAMPLING = Sampling(
    max_new_tokens=16, temperature=0.9, top_p=1.0, stop_ids=(3, 5, 11, 60), pad_id=0
)


def tiny_model(family: str = "llama", tied: bool = False, seed: int = 1) -> Any:
    """2 layers, 32 wide; its logits are far apart."""
    arch = load("pretrain", ["experiment=tiny"]).arch
    arch = replace(
        arch, family=family, layers=2, hidden_size=32, heads=4, kv_heads=2, head_dim=8,
        intermediate_size=64, max_positions=POSITIONS, tied_embeddings=tied,
    )  # fmt: skip
    if family == "gpt2":
        arch = replace(arch, kv_heads=4)
    model = build_model(arch, VOCAB_SIZE, None, seed).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def folder_of(model: Any, folder: Path) -> str:
    """Save the configuration alone: an engine's weights come from the policy."""
    model.config.save_pretrained(folder)
    return str(folder)


def weights_of(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    return iter(saved_weights(model).items())


def prompts(step: int = 0, count: int = 5) -> dict[int, list[int]]:
    """Return prompts of different lengths, by sample id."""
    drawn = np.random.default_rng(step)
    return {
        step * count + place: drawn.integers(1, VOCAB_SIZE, int(length)).tolist()
        for place, length in enumerate(drawn.integers(1, 24, count))
    }


def batches(step: int = 0) -> list[PromptBatch]:
    """20 answers, in 4 batches."""
    return plan_batches(prompts(step), group_size=4, batch=6, seed=7, step=step)


def sampled(generation: Generation) -> list[Any]:
    """Return the part of a generation that must not depend on the pool."""
    return [(result.batch, result.completions) for result in generation.results]
