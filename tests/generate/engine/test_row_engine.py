"""Families whose memory isn't keys and values by position are answered row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from generate.engine.decoding import (
    GREEDY,
    PROMPTS,
    assert_close,
    assert_same_choice,
    drawn,
    finished,
    full_logits,
    generated,
)
from model.families import build
from raymill.generate.engine.request import SamplingParameters
from raymill.generate.engine.row_engine import RowEngine
from raymill.generate.modes import mode_of


@pytest.mark.parametrize("family", ["lfm2", "bloom", pytest.param("mamba", marks=pytest.mark.slow)])
def test_greedy_answers_are_those_of_transformers(family: str) -> None:
    model = build(family).eval()
    assert not mode_of(model).batched
    engine = mode_of(model).engine(model, slots=3)
    assert isinstance(engine, RowEngine)
    for prompt, answer in zip(PROMPTS, drawn(engine, PROMPTS), strict=True):
        assert_same_choice(model, prompt, answer, generated(model, prompt))


@pytest.mark.parametrize("cached", [True, False])
def test_requests_are_counted_scored_and_canceled(cached: bool) -> None:
    model = build("llama").eval()
    engine = RowEngine(model, slots=2, cached=cached)
    asked = SamplingParameters(4, seed=2, top_log_probs=0, prompt_log_probs=True)
    keys = [engine.submit(prompt, asked) for prompt in PROMPTS[:4]]
    engine.step()
    counts = engine.counts()
    assert (counts.running, counts.waiting, counts.drawn) == (2, 2, 2)
    engine.cancel(keys[0])
    engine.cancel(keys[3])
    seen = finished(engine)
    assert seen.keys() == {keys[1], keys[2]}
    tokens = [token for progress in seen[keys[2]] for token in progress.tokens]
    whole = [*PROMPTS[2], *(token.id for token in tokens)]
    log_probs = full_logits(model, whole).log_softmax(-1)
    told = seen[keys[2]][0].prompt
    assert told is not None
    own = [float(log_probs[place, token]) for place, token in enumerate(whole[1:])]
    assert_close([*told, *(token.model for token in tokens)], own)


def test_a_seed_gives_the_same_tokens_in_both_engines() -> None:
    model = build("llama").eval()
    asked = [
        replace(GREEDY, temperature=0.9, top_p=0.9, seed=number) for number in range(len(PROMPTS))
    ]
    slots = mode_of(model).engine(model, slots=4, prefill_tokens=16)
    assert drawn(slots, PROMPTS, asked) == drawn(RowEngine(model, slots=4), PROMPTS, asked)
