"""Rows of tokens that grow together: what a model has read of them, and its logits of what comes next.

Shapes: B rows that are held, S columns of all that were given, V vocabulary.
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

    Without `cached`, the model reads all of them again for every token: that is what training computes.
    """

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int = 0, cached: bool = True
    ) -> None:
        self._model = model
        self._cached = cached
        # Adapters' wrappers take anything, and pass it on.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._takes = frozenset(inspect.signature(getattr(inner, "forward", inner)).parameters)
        device = next(model.parameters()).device
        longest = max(map(len, prompts))
        padded = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self._given_BS = torch.tensor(padded, device=device)
        real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._mask_BS = torch.tensor(real, device=device)
        self._read = 0  # columns that the memory has
        self._memory: dict[str, Any] = {}

    def logits(self) -> torch.Tensor:
        """[B, V] fp32: of every row's next token, by one forward pass over what hasn't been read."""
        output = self._model(**self._arguments())
        if self._cached:
            found = {name: getattr(output, name, None) for name in MEMORIES}
            self._memory = {name: value for name, value in found.items() if value is not None}
        if self._memory:  # what remembers nothing is given everything again
            self._read = self._given_BS.shape[1]
        logits_BV: torch.Tensor = output.logits[:, -1].float()
        return logits_BV

    def append(self, token_B: torch.Tensor) -> None:
        """Give every row one more token."""
        token_B1 = token_B[:, None]
        self._given_BS = torch.cat([self._given_BS, token_B1], dim=1)
        self._mask_BS = torch.cat([self._mask_BS, torch.ones_like(token_B1)], dim=1)

    def keep(self, kept: Sequence[int]) -> None:
        """Let go of all rows but these."""
        kept_B = torch.tensor(kept, device=self._given_BS.device)
        self._given_BS = self._given_BS[kept_B]
        self._mask_BS = self._mask_BS[kept_B]
        for memory in self._memory.values():
            # Made for beams, and the one way to choose rows that every kind of layer has.
            memory.reorder_cache(kept_B)

    def _arguments(self) -> dict[str, Any]:
        """Return what the model takes for the next pass, as transformers' own generation would give it."""
        # Position 0 is the first real token; what padding gets is masked anyway.
        positions_BS = (self._mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        arguments: dict[str, Any] = {
            "input_ids": self._given_BS[:, self._read :],
            "attention_mask": self._mask_BS,
            "position_ids": positions_BS[:, self._read :],
            "logits_to_keep": 1,
            "use_cache": self._cached,
            **(self._memory or {"cache": None}),
        }
        if "input_ids" in self._takes:  # or else it is passed on as it comes
            arguments = {name: value for name, value in arguments.items() if name in self._takes}
        prepare = getattr(self._model, "prepare_inputs_for_generation", None)
        if prepare is None:
            return arguments
        # Families differ in what they want of a mask once they have a memory.
        prepared: dict[str, Any] = prepare(**arguments, is_first_iteration=not self._memory)
        return prepared
