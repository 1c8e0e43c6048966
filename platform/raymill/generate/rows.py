"""Rows of tokens that grow together: what a model has read of them, and its logits of what comes next.

Shapes: B rows that are held, T tokens that the model hasn't read yet, S columns of all that were given, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

# What models give back to go on from: a cache or, in families that keep none, a state.
MEMORIES = ("cache", "state")


class GrowingRows:
    """Prompts of at least one token, padded on the left, so that every row's next token is in the last column.

    Rows of one length have no padding, and are given to the model without a mask or positions.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int = 0) -> None:
        self._model = model
        # Adapters' wrappers take anything, and pass it on.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._takes = frozenset(
            inspect.signature(getattr(inner, "forward", inner)).parameters
        )
        device = next(model.parameters()).device
        longest = max(map(len, prompts))
        padded = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self._given_BS = torch.tensor(padded, device=device)
        self._read = 0  # columns that the memory has
        self._memory: dict[str, Any] = {}
        self._mask_BS: torch.Tensor | None = None
        if min(map(len, prompts)) < longest:
            real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
            self._mask_BS = torch.tensor(real, device=device)

    def logits(self) -> torch.Tensor:
        """[B, V] fp32: of every row's next token, by one forward pass over what hasn't been read."""
        output = self._model(**self._arguments())
        self._memory = {
            name: output[name] for name in MEMORIES if getattr(output, name, None) is not None
        }
        if self._memory:  # what remembers nothing is given everything again
            self._read = self._given_BS.shape[1]
        logits_BV: torch.Tensor = output.logits[:, -1].float()
        return logits_BV

    def append(self, token_B: torch.Tensor) -> None:
        """Give every row one more token."""
        token_B1 = token_B[:, None]
        self._given_BS = torch.cat([self._given_BS, token_B1], dim=1)
        if self._mask_BS is not None:
            self._mask_BS = torch.cat([self._mask_BS, torch.ones_like(token_B1)], dim=1)

    def keep(self, kept: Sequence[int]) -> None:
        """Let go of all rows but these."""
        kept_B = torch.tensor(kept, device=self._given_BS.device)
        self._given_BS = self._given_BS[kept_B]
        if self._mask_BS is not None:
            self._mask_BS = self._mask_BS[kept_B]
        for memory in self._memory.values():
            # Made for beams, and the one way to choose rows that every kind of layer has.
            memory.reorder_cache(kept_B)

    def _arguments(self) -> dict[str, Any]:
        """What the model takes for the next pass, as transformers' own generation would give it."""
        fresh_BT = self._given_BS[:, self._read :]
        arguments: dict[str, Any] = {"input_ids": fresh_BT, "use_cache": True}
        first = not self._memory
        arguments |= self._memory or {"cache": None}
        if "logits_to_keep" in self._takes:
            arguments["logits_to_keep"] = 1
        if self._mask_BS is None:
            return arguments
        arguments["attention_mask"] = self._mask_BS
        if "position_ids" in self._takes:
            # Position 0 is the first real token; what padding gets is masked anyway.
            positions_BS = (self._mask_BS.cumsum(dim=1) - 1).clamp(min=0)
            arguments["position_ids"] = positions_BS[:, self._read :]
        # Families differ in what they want of a mask once they have a memory.
        prepared: dict[str, Any] = self._model.prepare_inputs_for_generation(
            **arguments, is_first_iteration=first
        )
        return prepared
