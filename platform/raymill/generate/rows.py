"""Rows of tokens that grow together, with the model's cache of them and its logits of their next tokens.

Shapes: B rows, S columns (prompts and appended tokens), V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# Names under which models return what they continue from: a cache or, in some recurrent families, a state.
MEMORIES = ("cache", "state")


class GrowingRows:
    """Prompts of at least one token, padded on the left, so that every row's next token is in the last column.

    Without `cached`, the model reads every row from its beginning for every token, as training does.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        pad_id: int = 0,
        cached: bool = True,
    ) -> None:
        self._model = model
        self._cached = cached
        # The wrapper of an adapter accepts any argument, so ask the model inside.
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._parameters = frozenset(inspect.signature(getattr(inner, "forward", inner)).parameters)
        device = next(model.parameters()).device
        longest = max(map(len, prompts))
        padded = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        self._tokens_BS = torch.tensor(padded, device=device)
        real = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self._mask_BS = torch.tensor(real, device=device)
        # Columns that the memory covers.
        self._read = 0
        self._memory: dict[str, Cache] = {}

    def logits(self) -> torch.Tensor:
        """[B, V] fp32: logits of every row's next token, by one forward pass over the columns not read yet."""
        output = self._model(**self._arguments())
        if self._cached:
            returned = {name: getattr(output, name, None) for name in MEMORIES}
            self._memory = {name: value for name, value in returned.items() if value is not None}
        # A model that returns no memory reads all columns again in the next pass.
        if self._memory:
            self._read = self._tokens_BS.shape[1]
        logits_BV: torch.Tensor = output.logits[:, -1].float()
        return logits_BV

    def append(self, token_B: torch.Tensor) -> None:
        """Append one token to every row."""
        token_B1 = token_B[:, None]
        self._tokens_BS = torch.cat([self._tokens_BS, token_B1], dim=1)
        self._mask_BS = torch.cat([self._mask_BS, torch.ones_like(token_B1)], dim=1)

    def keep(self, kept: Sequence[int]) -> None:
        """Drop all rows but these."""
        kept_B = torch.tensor(kept, device=self._tokens_BS.device)
        self._tokens_BS = self._tokens_BS[kept_B]
        self._mask_BS = self._mask_BS[kept_B]
        for memory in self._memory.values():
            # Written for beam search, and the only selection of rows that every kind of cache layer implements.
            memory.reorder_cache(kept_B)

    def _arguments(self) -> dict[str, object]:
        """Return the model's arguments of the next pass, as transformers' own generation would pass them."""
        # The first real token has position 0; padding's positions don't matter, since it is masked.
        positions_BS = (self._mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        arguments: dict[str, object] = {
            "input_ids": self._tokens_BS[:, self._read :],
            "attention_mask": self._mask_BS,
            "position_ids": positions_BS[:, self._read :],
            "logits_to_keep": 1,
            "use_cache": self._cached,
            **(self._memory or {"cache": None}),
        }
        # A forward without named parameters passes everything on, so nothing is filtered.
        if "input_ids" in self._parameters:
            arguments = {
                name: value for name, value in arguments.items() if name in self._parameters
            }
        prepare = getattr(self._model, "prepare_inputs_for_generation", None)
        if prepare is None:
            return arguments
        # Families differ in the mask that they need once they have a memory.
        prepared: dict[str, object] = prepare(**arguments, is_first_iteration=not self._memory)
        return prepared
