"""Engine for families whose memory isn't keys and values by position: every request is a batch of its own.

Such a memory may be a recurrent state, or one that transformers' own classes lay out. It is whatever the model
returns, and given back in the next pass. Some families need even this left out: then every pass reads a row
from its beginning, as training does.

Shapes: T tokens of a pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from raymill.generate.engine.request import Progress
from raymill.generate.engine.request_state import RequestState
from raymill.generate.engine.row_sampler import RowSampler
from raymill.generate.engine.token_engine import TokenEngine, Watch, forward_parameters

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# Names under which models return what they continue from: a cache or, in some recurrent families, a state.
MEMORIES = ("cache", "state")


class RowEngine(TokenEngine):
    """See `TokenEngine`. A step makes one pass for each running request; prompts are read in one pass.

    Answers don't depend on other requests. `cached`: without it, every pass reads a row from its beginning.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        cached: bool = True,
        adapters: Sequence[str] = (),
        inference: bool = False,
        watch: Watch | None = None,
    ) -> None:
        super().__init__(model, slots=slots, adapters=adapters, inference=inference, watch=watch)
        self._cached = cached
        self._takes = forward_parameters(model)
        # By the keys of requests.
        self._memories: dict[int, dict[str, Cache]] = {}
        self._sampler: RowSampler | None = None

    def _advance(self) -> list[Progress]:
        while self._waiting and len(self._rows) < self._slots:
            self._rows.append(self._waiting.popleft())
            self._sampler = None
        if not self._rows:
            return []
        rows = list(self._rows)
        logits_BV = torch.cat([self._pass(row) for row in rows])
        if self._sampler is None:
            self._sampler = RowSampler(rows, self._device)
        return self._record(rows, self._sampler, logits_BV)[0]

    def _leave(self, rows: Iterable[RequestState]) -> None:
        for row in rows:
            self._rows.remove(row)
            self._memories.pop(row.key, None)
            self._sampler = None

    def _pass(self, row: RequestState) -> torch.Tensor:
        """[1, V] fp32: logits of a row's next token, by one pass over the tokens not read yet."""
        self._passes += 1
        begin = row.cached
        self._prefilled += max(0, row.prompt_length - begin)
        scored = row.parameters.prompt_log_probs and len(row.tokens) == row.prompt_length
        output = self._model(**self._arguments(row, keep=0 if scored else 1))
        if self._cached:
            returned = {name: getattr(output, name, None) for name in MEMORIES}
            memory = {name: value for name, value in returned.items() if value is not None}
            self._memories[row.key] = memory
            # A model that returns no memory reads all tokens again in the next pass.
            row.cached = len(row.tokens) if memory else 0
        logits_TV: torch.Tensor = output.logits[0]
        if scored:
            self._score_prompt(row, logits_TV, begin)
        return logits_TV[-1:].float()

    def _arguments(self, row: RequestState, keep: int) -> dict[str, object]:
        """Return the arguments of a row's next pass, as transformers' own generation would pass them."""
        memory = self._memories.get(row.key, {})
        tokens_1S = torch.tensor([row.tokens], device=self._device)
        positions_1S = torch.arange(len(row.tokens), device=self._device)[None]
        arguments: dict[str, object] = {
            "input_ids": tokens_1S[:, row.cached :],
            "attention_mask": torch.ones_like(tokens_1S),
            "position_ids": positions_1S[:, row.cached :],
            "logits_to_keep": keep,
            "use_cache": self._cached,
            **(memory or {"cache": None}),
        }
        # A forward without named parameters passes everything on, so nothing is filtered.
        if "input_ids" in self._takes:
            arguments = {name: value for name, value in arguments.items() if name in self._takes}
        prepare = getattr(self._model, "prepare_inputs_for_generation", None)
        if prepare is not None:
            # Families differ in the mask that they need once they have a memory.
            arguments = prepare(**arguments, is_first_iteration=not memory)
        return arguments | self._adapter_arguments([row])
