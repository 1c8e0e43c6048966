"""Answers of a decoder, and what they should be by transformers' full passes in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymill.generate.engine.request import (
    DecodingEngine,
    DrawnToken,
    Finish,
    SamplingParameters,
    TokenLogProb,
)
from rl.rollout.vllm.models import full_pass


@dataclass
class Answer:
    """Tokens of one request, and why they ended."""

    tokens: list[DrawnToken]
    finish: Finish | None = None
    prompt: tuple[TokenLogProb, ...] | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def decode(
    engine: DecodingEngine, requests: Sequence[tuple[Sequence[int], SamplingParameters]]
) -> list[Answer]:
    """Answer requests together."""
    answers = {engine.submit(prompt, parameters): Answer([]) for prompt, parameters in requests}
    while engine.busy:
        for progress in engine.step():
            answer = answers[progress.key]
            assert answer.finish is None
            answer.tokens += progress.tokens
            answer.finish = progress.finish
            if progress.prompt is not None:
                answer.prompt = progress.prompt
    return list(answers.values())


def greedy(
    model: Any,
    prompt: Sequence[int],
    length: int,
    change: Callable[[np.ndarray, list[int]], np.ndarray] = lambda logits, _: logits,
) -> list[int]:
    """Take the likeliest token of each pass; `change` gets the logits and the answer so far."""
    answer: list[int] = []
    for _ in range(length):
        logits = full_pass(model, prompt, [*answer, 0])[-1]
        answer.append(int(change(logits.copy(), answer).argmax()))
    return answer


def adapter_of(model: Any, folder: Path) -> Path:
    """A LoRA adapter that changes what the model says."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.mul_(4)
    adapted.save_pretrained(folder)
    return folder
