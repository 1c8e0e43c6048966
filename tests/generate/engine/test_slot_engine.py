"""Requests that share slots are answered as transformers answers each alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from raymill.generate.engine.recorded_pass import can_record
from raymill.generate.engine.request import RequestError, SamplingParameters
from raymill.generate.engine.slot_engine import SlotEngine

# The last four have windows of 4 positions, in some layers or in all.
FAMILIES = ("llama", "gpt2", "qwen3", "qwen3_moe", "mixtral", "mistral", "gemma2", "gemma3_text")
POSITIONS = 128


@cache
def tiny(family: str) -> Any:
    return build(family).eval()


@cache
def expected(family: str) -> list[list[int]]:
    return [generated(tiny(family), prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_are_those_of_transformers(family: str) -> None:
    """Alone, all at once, and joining as others leave while prompts are read in chunks."""
    model = tiny(family)
    for slots, prefill_tokens in ((1, None), (16, None), (3, 4), (4, 64)):
        engine = SlotEngine(model, slots=slots, prefill_tokens=prefill_tokens, reuse=False)
        for prompt, ours, theirs in zip(
            PROMPTS, drawn(engine, PROMPTS), expected(family), strict=True
        ):
            assert_same_choice(model, prompt, ours, theirs)
        counts = engine.counts()
        assert counts.prefilled == sum(map(len, PROMPTS))
        assert counts.drawn == 16 * len(PROMPTS)
        assert (counts.running, counts.waiting, counts.reused) == (0, 0, 0)


ANSWER = st.tuples(
    st.integers(0, len(PROMPTS) - 1), st.integers(1, 16), st.integers(0, 3), st.booleans()
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(ANSWER, min_size=1, max_size=8), st.integers(1, 4), st.integers(1, 40))
def test_any_schedule_gives_what_a_row_alone_gives(
    requests: list[tuple[int, int, int, bool]], slots: int, prefill_tokens: int
) -> None:
    """Requests come after some steps, end at any length, and some are canceled in the middle."""
    model = tiny("llama")
    engine = SlotEngine(
        model, slots=slots, prefill_tokens=prefill_tokens, reuse=len(requests) % 2 == 0
    )
    seen: dict[int, list[int]] = {}
    wanted: dict[int, list[int]] = {}

    def step() -> None:
        for progress in engine.step():
            seen[progress.key] += [token.id for token in progress.tokens]

    for number, length, wait, canceled in requests:
        key = engine.submit(PROMPTS[number], replace(GREEDY, max_new_tokens=length))
        seen[key] = []
        for _ in range(wait):
            step()
        if canceled:
            engine.cancel(key)
        whole = expected("llama")[number][:length]
        wanted[key] = whole[: len(seen[key])] if canceled else whole
    while engine.busy:
        step()
    assert seen == wanted


def test_a_long_prompt_does_not_stall_others() -> None:
    engine = SlotEngine(tiny("llama"), slots=2, prefill_tokens=8)
    short = engine.submit(PROMPTS[1], GREEDY)
    engine.step()
    engine.submit(PROMPTS[4], GREEDY)
    for _ in range(3):
        assert [progress.key for progress in engine.step()] == [short]
    assert len(engine.step()) == 2, "30 tokens in 4 chunks"


def test_answers_are_bit_equal_whatever_the_engine_did_before() -> None:
    model = tiny("qwen3")
    asked = SamplingParameters(16, seed=3, top_log_probs=3, drawn_log_probs=True)

    def answers(engine: SlotEngine) -> list[Any]:
        keys = [engine.submit(prompt, asked) for prompt in PROMPTS]
        seen = finished(engine)
        return [
            [(progress.tokens, progress.finish, progress.prompt) for progress in seen[key]]
            for key in keys
        ]

    fresh = answers(SlotEngine(model, slots=3, reuse=False))
    used = SlotEngine(model, slots=3, reuse=False)
    drawn(used, [[9] * 100, *PROMPTS[::-1]])
    used.submit([8] * 90, GREEDY)
    used.step()
    used.cancel(len(PROMPTS) + 1)
    assert answers(used) == fresh
    assert answers(used) == fresh


def test_a_second_turn_does_not_read_the_first_again() -> None:
    model = tiny("llama")
    engine = SlotEngine(model, slots=2)
    prompt = PROMPTS[4]
    [answer] = drawn(engine, [prompt])
    second = [*prompt, *answer, 20, 21]
    before = engine.counts()
    key = engine.submit(second, GREEDY)
    progress = finished(engine)[key]
    again = [token.id for one in progress for token in one.tokens]
    counts = engine.counts()
    assert [one.reused for one in progress] == [counts.reused, *[None] * (len(again) - 1)]
    # The last token of an answer was never read.
    assert counts.reused - before.reused == len(prompt) + len(answer) - 1
    assert counts.prefilled - before.prefilled == 3
    assert_same_choice(model, second, again, generated(model, second))


def test_a_leftover_lends_a_common_beginning_and_stays() -> None:
    model = tiny("llama")
    engine = SlotEngine(model, slots=4)
    system, prompts = list(range(5, 25)), [[40, 41], [50], [44, 45, 46]]
    whole = [system + prompt for prompt in prompts]
    first = drawn(engine, whole[:1])
    found = drawn(engine, whole[1:])
    assert engine.counts().reused == 2 * len(system)
    for prompt, answer in zip(whole, first + found, strict=True):
        assert_same_choice(model, prompt, answer, generated(model, prompt))
    before = engine.counts().reused
    drawn(engine, [whole[0]])
    assert engine.counts().reused - before == len(whole[0]) - 1, "its last token is computed"


@pytest.mark.parametrize("when", ["waiting", "reading", "decoding"])
def test_a_canceled_request_frees_its_slot_at_once(when: str) -> None:
    engine = SlotEngine(tiny("llama"), slots=2, prefill_tokens=4)
    other = engine.submit(PROMPTS[0], GREEDY)
    key = engine.submit(PROMPTS[3], GREEDY)
    for _ in range({"waiting": 0, "reading": 2, "decoding": 14}[when]):
        engine.step()
    engine.cancel(key)
    engine.cancel(key)
    assert engine.counts().running + engine.counts().waiting == 1
    assert key not in finished(engine)
    assert not engine.busy
    engine.cancel(other)


def test_an_answer_ends_where_the_positions_do() -> None:
    engine = SlotEngine(tiny("gpt2"), slots=2)
    assert engine.positions == POSITIONS
    prompt = [5] * (POSITIONS - 4)
    key = engine.submit(prompt, GREEDY)
    progress = finished(engine)[key]
    assert sum(len(one.tokens) for one in progress) == 4
    assert progress[-1].finish == "length"
    assert [one.finish for one in progress[:-1]] == [None] * (len(progress) - 1)
    with pytest.raises(RequestError, match=f"{POSITIONS} tokens and leaves no position"):
        engine.submit([5] * POSITIONS, GREEDY)


def test_a_stop_token_is_the_last_one() -> None:
    engine = SlotEngine(tiny("llama"), slots=2)
    answer = expected("llama")[0]
    stop = answer[5]
    key = engine.submit(PROMPTS[0], replace(GREEDY, stop_ids=frozenset({stop})))
    progress = finished(engine)[key]
    tokens = [token.id for one in progress for token in one.tokens]
    assert tokens == answer[: answer.index(stop) + 1]
    assert progress[-1].finish == "stop"


@pytest.mark.parametrize("prefill_tokens", [None, 4])
def test_log_probs_are_those_of_a_full_pass(prefill_tokens: int | None) -> None:
    model = tiny("gemma2")
    engine = SlotEngine(model, slots=2, prefill_tokens=prefill_tokens)
    asked = SamplingParameters(8, temperature=0.7, seed=1, top_log_probs=3, prompt_log_probs=True)
    keys = [engine.submit(prompt, asked) for prompt in PROMPTS[:3]]
    plain = engine.submit(PROMPTS[3], GREEDY)
    seen = finished(engine)
    for prompt, key in zip(PROMPTS, keys, strict=False):
        tokens = [token for progress in seen[key] for token in progress.tokens]
        whole = [*prompt, *(token.id for token in tokens)]
        log_probs = full_logits(model, whole).log_softmax(-1)
        own = [float(log_probs[place, token]) for place, token in enumerate(whole[1:])]
        told = [progress.prompt for progress in seen[key] if progress.prompt is not None]
        assert len(told) == 1, "once"
        assert_close([*told[0], *(token.model for token in tokens)], own)
        for token, row in zip(tokens, log_probs[len(prompt) - 1 :], strict=False):
            assert token.model is not None
            best = row.topk(3)
            assert [one for one, _ in token.model.likeliest] == best.indices.tolist()
            values = torch.tensor([value for _, value in token.model.likeliest])
            torch.testing.assert_close(values.double(), best.values, rtol=0, atol=1e-4)
    assert all(token.model is None for progress in seen[plain] for token in progress.tokens)


def test_rows_with_adapters_are_what_each_adapter_gives_alone(tmp_path: Any) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    from raymill.generate.build import build_engine

    for number, name in enumerate(("red", "blue")):
        torch.manual_seed(number)
        lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        get_peft_model(build("llama"), lora).save_pretrained(tmp_path / name)
    folders = {name: tmp_path / name for name in ("red", "blue")}
    engine = build_engine(build("llama").eval(), slots=3, adapters=folders)
    assert tuple(engine.adapters) == ("red", "blue")
    names = ("red", None, "blue", "blue", None, "red", "blue")
    found = drawn(engine, PROMPTS, [replace(GREEDY, adapter=name) for name in names])
    for prompt, name, answer in zip(PROMPTS, names, found, strict=True):
        alone = build("llama").eval()
        if name is not None:
            alone = PeftModel.from_pretrained(alone, folders[name]).eval()
        assert_same_choice(alone, prompt, answer, generated(alone, prompt))
    reused = engine.counts().reused
    drawn(engine, [PROMPTS[4]], replace(GREEDY, adapter="red"))
    assert engine.counts().reused - reused <= 1, "what another adapter computed isn't reused"
    with pytest.raises(RequestError, match="adapter=green isn't loaded; loaded are: red, blue"):
        engine.submit([5], replace(GREEDY, adapter="green"))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_a_recorded_pass_gives_the_same_answers(family: str) -> None:
    """Rows join and leave, widths and memory grow; what is recorded gives bit-equal log-probabilities."""
    model = build(family).eval()
    asked = SamplingParameters(40, seed=3, top_log_probs=3)

    def answers(engine: SlotEngine) -> list[list[Any]]:
        keys = [engine.submit(prompt, asked) for prompt in PROMPTS]
        seen = finished(engine)
        return [[progress.tokens for progress in seen[key]] for key in keys]

    plain = answers(SlotEngine(model, slots=3, reuse=False))
    engine = SlotEngine(model, slots=3, reuse=False, inference=True)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert answers(engine) == plain
    assert len(passes) < engine.counts().passes // 4, "only prompts were read by the model itself"


def test_families_that_compute_differently_from_token_to_token_are_not_recorded() -> None:
    assert can_record(tiny("llama"))
    assert not can_record(tiny("qwen3_moe"))
    assert not can_record(
        build("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    )
