"""Initial values: the same in every range and process, and from transformers' distributions."""

from __future__ import annotations

import hashlib
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp, kstest, truncnorm
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, Qwen3Config

from raymill.errors import ConfigError
from raymill.model.blueprint import Blueprint
from raymill.model.build import plan_initial
from raymill.model.draws import BLOCK
from raymill.model.parent import with_adapters
from raymill.model.values import Distribution, InitialValues
from raymill.schema.sections import LoraConfig
from sections import plain

SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
LLAMA = SIZES | {"intermediate_size": 96, "num_key_value_heads": 2, "pad_token_id": 5}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**LLAMA),
    "qwen3": Qwen3Config(**LLAMA, head_dim=12, tie_word_embeddings=True),
    "gpt2": GPT2Config(
        n_embd=48, n_layer=2, n_head=4, vocab_size=300, bos_token_id=0, eos_token_id=0
    ),
    "mixtral": MixtralConfig(**LLAMA, num_local_experts=4),
}
NORMAL = Distribution("normal", (0.0, 0.02))


def values(distribution: Distribution, count: int, name: str = "w", seed: int = 1) -> InitialValues:
    return InitialValues(name, seed, (count,), ((0, count, distribution),))


@pytest.mark.parametrize(
    "distribution",
    [
        NORMAL,
        Distribution("uniform", (-1.0, 2.0)),
        Distribution("truncated", (0.0, 1.0, -2.0, 2.0)),
    ],
    ids=lambda distribution: distribution.kind,
)
def test_a_range_is_a_part_of_the_whole(distribution: Distribution) -> None:
    count = 3 * BLOCK + 17
    whole = values(distribution, count).read(0, count)
    rng = np.random.default_rng(0)
    for start, stop in np.sort(rng.integers(0, count + 1, (20, 2))).tolist():
        assert torch.equal(values(distribution, count).read(start, stop), whole[start:stop])
    # As many as one rank of any world has, drawn by several threads.
    parts = [values(distribution, count).read(first, min(count, first + 999))
             for first in range(0, count, 999)]  # fmt: skip
    assert torch.equal(torch.cat(parts), whole)


def test_threads_draw_what_one_thread_draws() -> None:
    count = 70 * BLOCK
    drawn = []
    for threads in (1, 3):
        with patch("torch.get_num_threads", lambda threads=threads: threads):
            drawn.append(values(NORMAL, count).read(5, count))
    assert torch.equal(*drawn)


def test_streams_differ_by_seed_and_name_and_stay_as_they_are() -> None:
    one, other, third = (
        values(NORMAL, 1000, name, seed).read(0, 1000)
        for name, seed in (("a", 1), ("b", 1), ("a", 2))
    )
    for left, right in ((one, other), (one, third), (other, third)):
        assert abs(float(np.corrcoef(left, right)[0, 1])) < 0.1
    # A library that draws other numbers would change the runs that are started again from nothing.
    assert hashlib.sha256(one.numpy().tobytes()).hexdigest()[:16] == "e77305cd494a72d8"


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated"])
def test_distributions_against_formulas(distribution: str) -> None:
    numbers = {"normal": (0.5, 2.0), "uniform": (-1.0, 3.0), "truncated": (0.0, 2.0, -1.0, 3.0)}
    formulas = {
        "normal": ("norm", (0.5, 2.0)),
        "uniform": ("uniform", (-1.0, 4.0)),
        "truncated": (truncnorm(-0.5, 1.5, 0.0, 2.0).cdf, ()),
    }
    drawn = values(Distribution(distribution, numbers[distribution]), 200_000).read(0, 200_000)
    formula, arguments = formulas[distribution]
    assert kstest(drawn.double().numpy(), formula, arguments).pvalue > 0.01


@pytest.mark.parametrize("family", CONFIGS)
def test_every_parameter_is_distributed_as_transformers_draws_it(family: str) -> None:
    config = CONFIGS[family]
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    ours = plan_initial(config, 1).whole()
    expected = dict(theirs.named_parameters())
    assert [name for name, _ in ours.named_parameters()] == list(expected)
    pvalues = []
    for name, parameter in ours.named_parameters():
        mine, reference = (
            tensor.detach().flatten().numpy() for tensor in (parameter, expected[name])
        )
        if len(np.unique(reference)) == 1:
            assert np.array_equal(mine, reference), name
        else:
            pvalues.append(ks_2samp(mine, reference).pvalue)
            assert mine.std() == pytest.approx(reference.std(), rel=5 * (1 / len(mine)) ** 0.5), (
                name
            )
    # As many small ones as there are by chance.
    assert min(pvalues) > 0.01 / len(pvalues)
    if family != "gpt2":
        assert not ours.get_input_embeddings().weight[5].any(), "the padding row is zero"
    tied = ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    assert tied == config.tie_word_embeddings
    for (name, buffer), (_, other) in zip(
        ours.named_buffers(), theirs.named_buffers(), strict=True
    ):
        assert buffer.dtype == other.dtype, name
        assert torch.equal(buffer, other), name


def test_adapters_start_as_peft_starts_them() -> None:
    lora = plain(LoraConfig, rank=8, targets=("q_proj", "up_proj"))
    model = with_adapters(plan_initial(CONFIGS["llama"], 1), lora, [7, 9], 1).whole()
    found = dict(model.named_parameters())
    drawn = [p for name, p in found.items() if "lora_A" in name]
    assert len(drawn) == 4
    for matrix in drawn:
        # Kaiming's uniform distribution with a = √5 has the bounds ±1/√(inputs).
        bound = matrix.shape[1] ** -0.5
        assert (
            kstest(matrix.detach().flatten().numpy(), "uniform", (-bound, 2 * bound)).pvalue > 0.01
        )
    assert not any(p.any() for name, p in found.items() if "lora_B" in name)
    base = plan_initial(CONFIGS["llama"], 1).whole().get_input_embeddings().weight
    for name, rows in found.items():
        if "trainable_tokens_delta" in name and "embed_tokens" in name:
            assert torch.equal(rows, base[[7, 9]])


def test_an_unknown_initialization_is_refused_by_name() -> None:
    blueprint = plan_initial(CONFIGS["llama"], 1)
    trace = blueprint.trace()
    with trace.recording(), torch.no_grad():
        blueprint.model.lm_head.weight.exponential_()
    changed = Blueprint.traced(blueprint.model, trace, 1)
    with pytest.raises(ConfigError, match=r"lm_head\.weight: transformers initializes it by expon"):
        changed.whole()
