"""The planned memory of a served model is what its engine takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from raymill.generate.build import build_engine, served_numbers
from raymill.generate.engine.request import SamplingParameters
from raymill.generate.engine.slot_engine import PREFILL_TOKENS
from raymill.plan.serving import serving_memory

SLOTS, POSITIONS = 8, 512


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that torch held at once, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [
        event
        for event in profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]"
    ]
    events.sort(key=lambda event: event.start_ns())
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_an_engine_takes_the_planned_memory(tmp_path: Path) -> None:
    """All slots are filled to their last position, drawn by top_p, with their prompts' log-probabilities."""
    config = LlamaConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=8192, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    numbers = served_numbers(tmp_path)
    weights = sum(one.numel() * 4 for one in model.parameters())
    assert weights <= numbers.weights < weights + 10_000
    assert (numbers.element, numbers.vocabulary, numbers.positions) == (4, 8192, POSITIONS)
    assert numbers.cache == 2 * 3 * 2 * 16

    def fill() -> None:
        engine = build_engine(model, slots=SLOTS)
        asked = SamplingParameters(POSITIONS, top_p=0.9, top_log_probs=0, prompt_log_probs=True)
        for row in range(SLOTS):
            engine.submit([row + 1] * (POSITIONS - 8), asked)
            # The first prompt is read in one pass, alone.
            engine.step()
        while engine.busy:
            engine.step()

    with torch.inference_mode():
        measured = peak_bytes(fill)
    plan = serving_memory(numbers, free=2**40, prompt_tokens=PREFILL_TOKENS)
    planned = plan.prompts + SLOTS * (plan.slot + plan.row)
    assert 0.4 * planned < measured < planned
