"""Engines for servers and terminals, with adapters; and the numbers by which their slots are planned."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from raymill.errors import ConfigError
from raymill.generate.engine.slot_engine import PREFILL_TOKENS
from raymill.generate.engine.token_engine import TokenEngine
from raymill.generate.modes import mode_of
from raymill.model.shape import (
    SHAPE_KEYS,
    cache_numbers,
    context_length,
    first_number,
    read_config,
)
from raymill.plan.serving import ServedNumbers
from raymill.reading import entries

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Positions that are planned for a model without a limit, or with one that few requests reach.
USUAL_POSITIONS = 8192


def build_engine(
    model: PreTrainedModel,
    *,
    slots: int,
    prefill_tokens: int = PREFILL_TOKENS,
    adapters: Mapping[str, Path] | None = None,
) -> TokenEngine:
    """Return an engine for a model that `load_model` returned and that is only decoded from.

    `slots`: requests at the same time.
    `adapters`: folders of peft adapters by the name under which requests choose them.

    Raises:
        ConfigError: the family can't be sampled, or an adapter doesn't fit the model.
    """
    mode = mode_of(model)
    if adapters:
        model = _with_adapters(model, adapters)
    return mode.engine(
        model,
        slots=slots,
        prefill_tokens=prefill_tokens,
        reuse=True,
        adapters=tuple(adapters or ()),
        inference=True,
    )


def served_numbers(folder: Path) -> ServedNumbers:
    """Return a saved model's numbers for the plan of its memory; those that it doesn't tell count as 0.

    Raises:
        ConfigError: its config.json can't be read.
    """
    config = read_config(folder)

    def number(key: str) -> int:
        return int(first_number(config, SHAPE_KEYS[key]) or 0)

    hidden, cache = number("hidden_size"), cache_numbers(config)
    inner = number("intermediate_size") or 4 * hidden
    named = config.get("dtype") or config.get("torch_dtype") or "float32"
    return ServedNumbers(
        weights=weight_bytes(folder),
        element=getattr(torch, str(named), torch.float32).itemsize,
        cache=cache,
        # Input, norm, output; queries, keys, values and what attention returns; gate, up, and their product.
        block=4 * hidden + 2 * hidden + cache // max(1, number("layers")) + 4 * inner,
        vocabulary=int(first_number(config, ("vocab_size",)) or 0),
        positions=min(context_length(config) or USUAL_POSITIONS, USUAL_POSITIONS),
    )


def weight_bytes(folder: Path) -> int:
    """Return the size of a saved model's weights."""
    return sum(path.stat().st_size for path in entries(folder) if path.suffix == ".safetensors")


def free_bytes() -> int:
    """Return the free memory of the device that models are loaded to."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    import psutil

    return int(psutil.virtual_memory().available)


def _with_adapters(model: PreTrainedModel, adapters: Mapping[str, Path]) -> PreTrainedModel:
    """Return peft's wrapper of a model with adapters loaded."""
    from peft import PeftModel

    wrapped = None
    for name, folder in adapters.items():
        try:
            if wrapped is None:
                wrapped = PeftModel.from_pretrained(
                    model, folder, adapter_name=name, trust_remote_code=False
                )
            else:
                wrapped.load_adapter(folder, adapter_name=name)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                [f"adapters.{name}: {folder} can't be loaded onto the model: {reason}"]
            ) from error
        settings = wrapped.peft_config[name]
        # peft can't mix these with rows of another adapter.
        for option in ("modules_to_save", "trainable_token_indices", "use_dora"):
            if getattr(settings, option, None):
                raise ConfigError(
                    [
                        f"adapters.{name}: {folder} was trained with {option}, which can't differ between "
                        "requests; serve its merged export as a model of its own"
                    ]
                )
    assert wrapped is not None, "there is at least one adapter"
    result: PreTrainedModel = wrapped.eval()
    return result
