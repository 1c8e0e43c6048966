"""Adapters merged one weight at a time give the trained model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from model.families import VOCAB_SIZE, build
from model.planned import planned
from raymill.errors import ConfigError
from raymill.model.merged import merged_weights
from raymill.model.parent import with_adapters
from raymill.rl.rollout.weights import saved_weights
from raymill.schema.sections import LoraConfig
from sections import plain

IDS = torch.tensor([[3, 40, 5, 41, 7, 6]])


def adapted(model: Any, targets: Sequence[str], new_ids: Sequence[int] = ()) -> Any:
    """Return the model with adapters that change its output."""
    lora = plain(LoraConfig, rank=2, targets=tuple(targets))
    found = with_adapters(planned(model), lora, new_ids, 7).whole().eval()
    torch.manual_seed(0)
    for parameter in found.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter) / 4
    return found


def untied(family: str) -> Any:
    """Build a model of a family whose output matrix is a weight of its own."""
    model = build(family)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    return model


# Experts are parameters, not layers, in huggingface/peft#3009.
@pytest.mark.parametrize(
    ("family", "new_ids"),
    [("llama", [VOCAB_SIZE - 1]), ("gpt2", []), ("mixtral", [VOCAB_SIZE - 1]), ("qwen3_moe", [])],
)
def test_merged_weights_are_the_model(family: str, new_ids: list[int]) -> None:
    _same(adapted(build(family), ["all-linear"], new_ids), build(family))


def test_adapters_of_embeddings_are_merged_too() -> None:
    model = untied("llama")
    _same(adapted(model, ["q_proj", "embed_tokens", "lm_head"]), build("llama"))


def _same(model: Any, plain: Any) -> None:
    weights = {name: weight.clone() for name, weight in merged_weights(model, _whole)}
    assert {name: weight.shape for name, weight in weights.items()} == {
        name: weight.shape for name, weight in saved_weights(plain).items()
    }
    plain.load_state_dict(weights, strict=False)
    plain.tie_weights()
    with torch.no_grad():
        expected, found = model(IDS).logits, plain.eval()(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _whole(parameters: Sequence[torch.nn.Parameter]) -> nullcontext[None]:
    return nullcontext()


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("new_ids", [[], [VOCAB_SIZE - 1]], ids=["", "new token"])
def test_one_side_of_a_shared_matrix_takes_no_adapter(target: str, new_ids: list[int]) -> None:
    """Merging would untie the embeddings, and no plain model has both: unslothai/unsloth#9331."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shared = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )
    with pytest.raises(ConfigError, match=rf"lora\.targets=.*one matrix.*leave {target} out"):
        adapted(shared, ["q_proj", target], new_ids)


def test_embeddings_with_new_tokens_take_no_adapter() -> None:
    with pytest.raises(
        ConfigError, match=r"lora\.targets=.*new tokens.*leave embed_tokens and lm_head out"
    ):
        adapted(untied("llama"), ["q_proj", "embed_tokens", "lm_head"], [VOCAB_SIZE - 1])
