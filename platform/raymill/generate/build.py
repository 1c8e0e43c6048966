"""Engines for servers and terminals: a saved model, its adapters, and as many slots as fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from raymill.errors import ConfigError
from raymill.generate.engine.slot_engine import PREFILL_TOKENS
from raymill.generate.engine.token_engine import TokenEngine
from raymill.generate.modes import mode_of
from raymill.model.shape import cache_numbers, context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Positions that are reckoned for a model without a limit, or with one that few requests reach.
USUAL_POSITIONS = 8192
# Requests at the same time, whatever the memory: a step's overhead for each is no longer small then.
MOST_SLOTS = 256


def build_engine(
    model: PreTrainedModel,
    *,
    slots: int | None = None,
    cache_bytes: int | None = None,
    prefill_tokens: int = PREFILL_TOKENS,
    adapters: Mapping[str, Path] | None = None,
) -> TokenEngine:
    """Return an engine for a model that `load_model` returned and that is only decoded from.

    `slots`: requests at the same time; None takes as many as fit into `cache_bytes` (see `slots_that_fit`).
    `adapters`: folders of peft adapters by the name under which requests choose them.

    Raises:
        ConfigError: the family can't be sampled, or an adapter doesn't fit the model.
    """
    mode = mode_of(model)
    if adapters:
        model = _with_adapters(model, adapters)
    if slots is None:
        slots = slots_that_fit(model, cache_bytes)
    return mode.engine(
        model,
        slots=slots,
        prefill_tokens=prefill_tokens,
        reuse=True,
        adapters=tuple(adapters or ()),
        inference=True,
    )


def slots_that_fit(model: PreTrainedModel, cache_bytes: int | None = None) -> int:
    """Return the number of slots whose keys and values fit into memory, at least 1.

    `cache_bytes`: None takes half of what the device has free, since passes need memory as well.
    """
    if cache_bytes is None:
        cache_bytes = _free_bytes(next(model.parameters()).device) // 2
    positions = min(context_length(model.config) or USUAL_POSITIONS, USUAL_POSITIONS)
    element = next(model.parameters()).dtype.itemsize
    slot_bytes = positions * cache_numbers(model.config) * element
    return max(1, min(MOST_SLOTS, int(cache_bytes // slot_bytes)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
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
