"""Sampling against naive references, and its effects on everything else: none."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from raymill.config import load
from raymill.generate.decoding import decode_stream
from raymill.generate.engine.distribution import draw, nucleus
from raymill.generate.modes import SamplingMode, use_mode
from raymill.generate.sampling import sample
from raymill.model.build import build_model


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    arch = load("pretrain", ["experiment=tiny", "arch.max_positions=64"]).arch
    return build_model(arch, 97, 0, 1).eval()


def naive_nucleus(probabilities: list[float], top_p: float) -> list[float]:
    kept, total = [0.0] * len(probabilities), 0.0
    for index in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if total >= top_p:
            break
        kept[index] = probabilities[index]
        total += probabilities[index]
    return kept


def test_nucleus_is_the_naive_one() -> None:
    probabilities = torch.softmax(
        torch.randn(8, 50, generator=torch.Generator().manual_seed(1)), -1
    )
    for top_p in (0.1, 0.5, 0.9, 1.0):
        for row, found in zip(probabilities, nucleus(probabilities, top_p), strict=True):
            assert found.tolist() == pytest.approx(naive_nucleus(row.tolist(), top_p))


def test_frequencies_follow_the_distribution() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).repeat(20_000, 1)
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(20_000, generator=generator, dtype=torch.float64)
    drawn, _ = draw(nucleus(probabilities, 0.9).double(), uniform)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert shares.tolist() == pytest.approx([0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0], abs=0.015)


def test_greedy_is_transformers_generate(model: torch.nn.Module) -> None:
    prompt = [0, 5, 9]
    ours = list(sample(model, prompt, max_new_tokens=20, temperature=0, top_p=1.0,
                       seed=0, end_of_text_id=None))  # fmt: skip
    theirs = model.generate(  # type: ignore[operator]
        torch.tensor([prompt]),
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert ours == theirs[0, 3:].tolist()


def test_a_seed_decides_and_the_global_state_is_left_alone(model: torch.nn.Module) -> None:
    def draw(seed: int) -> list[int]:
        return list(sample(model, [0], max_new_tokens=90, temperature=1.0, top_p=0.9,
                           seed=seed, end_of_text_id=None))  # fmt: skip

    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = draw(1)
    assert len(first) == 90, "longer than the model's positions: it slides"
    assert draw(1) == first
    assert draw(2) != first
    assert torch.equal(torch.get_rng_state(), before)


def test_lockstep_makes_every_pass_whatever_is_drawn(model: torch.nn.Module) -> None:
    passes = []

    def counted(**arguments: torch.Tensor) -> object:
        passes.append(1)
        return model(**arguments)

    counted.parameters = model.parameters  # type: ignore[attr-defined]
    counted.config = model.config  # type: ignore[attr-defined]
    counted.forward = model.forward  # type: ignore[attr-defined]
    counted.get_output_embeddings = model.get_output_embeddings  # type: ignore[attr-defined]
    use_mode(counted, SamplingMode())
    likeliest = int(model(input_ids=torch.tensor([[0, 5]])).logits[0, -1].argmax())
    settings = {"max_new_tokens": 7, "temperature": 0.0, "top_p": 1.0,
                "seed": 0, "end_of_text_id": likeliest}  # fmt: skip
    assert list(sample(counted, [0, 5], **settings, lockstep=True)) == []  # type: ignore[arg-type]
    assert len(passes) == 7
    assert list(sample(counted, [0, 5], **settings)) == []  # type: ignore[arg-type]
    assert len(passes) == 8


def test_characters_of_several_tokens_come_out_whole(tmp_path: object) -> None:
    from pathlib import Path

    from data.prepared_factory import write_prepared

    assert isinstance(tmp_path, Path)
    folder = write_prepared(tmp_path).tokenizer_folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "héllo 🙂 wörld"
    pieces = list(decode_stream(tokenizer, tokenizer.encode(text)))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
