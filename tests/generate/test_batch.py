"""Many prompts at once are what one-by-one sampling gives, in every family, whatever shares a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from raymill.config import load
from raymill.generate.batch import Completion, complete
from raymill.generate.engine.distribution import nucleus
from raymill.generate.modes import mode_of
from raymill.generate.sampling import sample
from raymill.model.build import build_model

FAMILIES = ("llama", "qwen3", "gpt2")
VOCAB_SIZE = 97
POSITIONS = 64
PROMPTS = [
    np.random.default_rng(length).integers(1, VOCAB_SIZE, length).tolist()
    for length in (7, 1, 19, 12, 3, 30, 13)  # in no order, one of a single token
]
DRAWN = {"temperature": 1.0, "top_p": 0.9, "seeds": range(7)}
GREEDY = {"temperature": 0.0, "top_p": 1.0, "seeds": range(7)}


def tiny(family: str, attention: str = "sdpa") -> Any:
    arch = load("pretrain", ["experiment=tiny", f"arch.max_positions={POSITIONS}"]).arch
    # Tied embeddings and small weights would repeat the last token forever.
    arch = replace(arch, family=family, attention=attention, tied_embeddings=False)
    model = build_model(arch, VOCAB_SIZE, None, 1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Any:
    return tiny(request.param)


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny("llama")


def together(model: Any, settings: dict[str, Any] = GREEDY, **changes: Any) -> list[Completion]:
    arguments = {"max_new_tokens": 20, "stop_ids": (), "batch_size": 4, **settings, **changes}
    return complete(model, arguments.pop("prompts", PROMPTS), **arguments)


def one_by_one(model: Any, settings: dict[str, Any]) -> list[tuple[int, ...]]:
    return [
        tuple(
            sample(
                model,
                prompt,
                max_new_tokens=20,
                temperature=settings["temperature"],
                top_p=settings["top_p"],
                seed=seed,
                end_of_text_id=None,
            )
        )
        for prompt, seed in zip(PROMPTS, settings["seeds"], strict=True)
    ]


@pytest.mark.parametrize("settings", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_batches_are_one_by_one_sampling(model: Any, settings: dict[str, Any]) -> None:
    expected = one_by_one(model, settings)
    assert len(set(expected)) == len(expected), "the prompts matter"
    for batch_size in (1, 3, 64):
        found = together(model, settings, batch_size=batch_size)
        assert [completion.ids for completion in found] == expected
        assert {completion.finish for completion in found} == {"length"}


def test_greedy_is_transformers_generate(model: Any) -> None:
    for prompt, completion in zip(PROMPTS, together(model), strict=True):
        theirs = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert completion.ids == tuple(theirs[0, len(prompt) :].tolist())


def test_eager_attention_masks_the_padding_too() -> None:
    model = tiny("llama", "eager")
    assert [completion.ids for completion in together(model)] == one_by_one(model, GREEDY)


def test_logits_are_those_without_padding(model: Any) -> None:
    """Tokens could agree by luck: here every step's logits are compared."""
    seen: list[torch.Tensor] = []

    mode_of(model)  # which makes passes of its own, once
    hook = model.register_forward_hook(
        lambda _module, _inputs, output: seen.append(output.logits[:, -1])
    )
    together(model, batch_size=7)
    by_length = sorted(range(7), key=lambda index: -len(PROMPTS[index]))
    batched = {index: torch.stack(seen)[:, row] for row, index in enumerate(by_length)}
    for index, prompt in enumerate(PROMPTS):
        seen.clear()
        together(model, prompts=[prompt], seeds=[0])
        torch.testing.assert_close(torch.cat(seen), batched[index], rtol=1e-4, atol=1e-4)
    hook.remove()


def distributions(model: Any, prompt: list[int], ids: tuple[int, ...], temperature: float) -> Any:
    """[tokens drawn, vocabulary] probabilities by one forward pass, without cache, batch or padding."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
    return torch.softmax(logits[len(prompt) - 1 : -1].double() / temperature, dim=-1).numpy()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.4, 0.8)])
def test_log_probs_are_of_the_distribution_drawn_from(
    model: Any, temperature: float, top_p: float
) -> None:
    settings = {"temperature": temperature, "top_p": top_p, "seeds": range(7)}
    stop_ids = {completion.ids[5] for completion in together(model, settings)[:3]}
    found = together(model, settings, stop_ids=stop_ids, log_probs=True)
    assert together(model, settings, stop_ids=stop_ids) == [
        replace(completion, log_probs=()) for completion in found
    ], "asking changes nothing"
    for prompt, completion in zip(PROMPTS, found, strict=True):
        expected = []
        every = distributions(model, prompt, completion.ids, temperature)
        for row, token in zip(every, completion.ids, strict=True):
            falling = np.sort(row)[::-1]
            kept = falling[: np.searchsorted(falling.cumsum(), top_p) + 1]
            assert row[token] > kept[-1] - 1e-6
            expected.append(np.log(row[token] / kept.sum()))
        np.testing.assert_allclose(completion.log_probs, expected, rtol=0, atol=1e-5)


def test_nothing_is_left_to_chance_at_temperature_0(llama: Any) -> None:
    for completion in together(llama, log_probs=True):
        assert completion.log_probs == (0.0,) * len(completion.ids)


def test_frequencies_follow_the_model(llama: Any) -> None:
    prompt, count = PROMPTS[3], 4000
    drawn = together(
        llama, prompts=[prompt] * count, seeds=range(count), temperature=1.0, max_new_tokens=1,
        batch_size=count,
    )  # fmt: skip
    shares = np.bincount([one.ids[0] for one in drawn], minlength=VOCAB_SIZE) / count
    (expected,) = distributions(llama, prompt, (0,), 1.0)
    # Five standard deviations of each token's share.
    assert np.all(np.abs(shares - expected) <= 5 * np.sqrt(expected / count) + 1e-9)


@pytest.mark.parametrize("spread", [0.1, 3.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("rounded", [torch.float32, torch.bfloat16], ids=["fp32", "ties"])
def test_the_nucleus_of_a_large_vocabulary_is_the_naive_one(
    spread: float, rounded: torch.dtype
) -> None:
    """Logits in bf16 tie often; which of the tied are inside must be deterministic."""
    logits = torch.randn(5, 5000, generator=torch.Generator().manual_seed(1)) * spread
    logits[0] = 0.0
    probabilities = torch.softmax(logits.to(rounded).float(), dim=-1)
    for row, found in zip(probabilities.numpy(), nucleus(probabilities, 0.9).numpy(), strict=True):
        falling = np.argsort(-row, kind="stable")
        before = row[falling].cumsum(dtype=float) - row[falling]
        inside = falling[before < 0.9]
        expected = np.zeros_like(row)
        expected[inside] = row[inside]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("lockstep", [False, True])
@pytest.mark.parametrize("settings", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_row_ends_with_its_stop_token(
    model: Any, settings: dict[str, Any], lockstep: bool
) -> None:
    whole = one_by_one(model, settings)
    stop_ids = {token for ids in whole[:3] for token in ids[4:8]} - set(whole[6])
    found = together(model, settings, stop_ids=stop_ids, lockstep=lockstep)
    for ids, completion in zip(whole, found, strict=True):
        ends = [place for place, token in enumerate(ids) if token in stop_ids]
        assert completion.ids == (ids[: ends[0] + 1] if ends else ids)
        assert completion.finish == ("stop" if ends else "length")
    assert {completion.finish for completion in found} == {"stop", "length"}


def test_passes_end_with_the_rows_unless_in_lockstep(llama: Any) -> None:
    rows: list[int] = []
    hook = llama.register_forward_pre_hook(
        lambda _, __, arguments: rows.append(len(arguments["input_ids"])), with_kwargs=True
    )
    whole = together(llama, batch_size=7)
    stop_ids = {completion.ids[3] for completion in whole}
    rows.clear()
    found = together(llama, batch_size=7, stop_ids=stop_ids)
    lengths = [len(completion.ids) for completion in found]
    assert rows == [sum(length > step for length in lengths) for step in range(max(lengths))]
    rows.clear()
    assert together(llama, batch_size=7, stop_ids=stop_ids, lockstep=True) == found
    assert len(rows) == 20
    rows.clear()
    assert together(llama, batch_size=3, stop_ids=stop_ids, lockstep=True) == found
    assert len(rows) == 3 * 20
    hook.remove()


def test_a_long_prompt_keeps_its_last_part(llama: Any) -> None:
    long = [token % VOCAB_SIZE for token in range(5, 105)]
    cut = together(llama, prompts=[long, [3]], seeds=[0, 1])
    assert [one.left_out for one in cut] == [100 - (POSITIONS - 20), 0], "and says what it lost"
    assert cut == together(llama, prompts=[long[-(POSITIONS - 20) :], [3]], seeds=[0, 1])


def test_the_model_and_the_global_state_are_left_as_they_were(llama: Any) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    llama.train()
    drawn = together(llama, DRAWN)
    assert llama.training
    assert torch.equal(torch.get_rng_state(), before)
    llama.eval()
    assert together(llama, DRAWN) == drawn, "without dropout"
    assert not llama.training
    assert together(llama, DRAWN, seeds=range(1, 8)) != drawn
    assert together(llama, prompts=[], seeds=[]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1]}, "one seed per prompt, got 1 for 7"),
        ({"prompts": [[1], []], "seeds": [1, 2]}, r"prompts \[1\] are empty"),
        ({"max_new_tokens": POSITIONS}, "leaves no position"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_cannot_be_completed_is_refused(
    llama: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        together(llama, **changes)
