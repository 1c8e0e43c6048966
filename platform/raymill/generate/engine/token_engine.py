"""The part that engines over transformers share: queue, drawing and recording of tokens, end of an answer.

Shapes: B rows of a pass, T tokens of a row in it, V vocabulary.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import torch

from raymill.generate.engine.request import (
    DrawnToken,
    EngineCounts,
    Finish,
    Progress,
    SamplingParameters,
)
from raymill.generate.engine.request_state import RequestState, check_request, uniform_numbers
from raymill.generate.engine.row_sampler import RowSampler, log_probs_of
from raymill.model.shape import NO_LIMIT, context_length
from raymill.objective.heads import Fp32Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Called with the keys of rows and their logits, [B, V], before tokens are drawn from these.
Watch = Callable[[Sequence[int], torch.Tensor], None]


class TokenEngine(ABC):
    """See `DecodingEngine`. The model must be in evaluation mode; its output matrix computes in fp32.

    `slots`: requests that run at the same time; others wait in the order in which they came. `adapters`: names
    of those that a request may choose, where the model is one of peft's. `inference`: the model's weights
    aren't trained in this process, which saves some of each pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        slots: int,
        adapters: Sequence[str] = (),
        inference: bool = False,
        watch: Watch | None = None,
    ) -> None:
        if slots < 1:
            raise ValueError(f"slots={slots} must be at least 1")
        self._model, self._slots = model, slots
        self._adapters = tuple(adapters)
        self._watch = watch
        self._positions = context_length(model.config)
        self._device = next(model.parameters()).device
        self._vocab_size = _vocab_size(model)
        self._gradients = torch.inference_mode if inference else torch.no_grad
        self._head: AbstractContextManager[None] = _fp32_head(model)
        self._keys = count()
        self._waiting: deque[RequestState] = deque()
        # Requests that hold a slot.
        self._rows: list[RequestState] = []
        self._prefilled = self._reused = self._drawn = self._passes = 0

    @property
    def positions(self) -> int | None:
        """See `DecodingEngine`."""
        return self._positions

    @property
    def adapters(self) -> Sequence[str]:
        """See `DecodingEngine`."""
        return self._adapters

    @property
    def busy(self) -> bool:
        """See `DecodingEngine`."""
        return bool(self._waiting or self._rows)

    def submit(
        self, prompt: Sequence[int], parameters: SamplingParameters, *, skip: int = 0
    ) -> int:
        """See `DecodingEngine`.

        `skip`: numbers of the seed's generator that an earlier part of the answer used.
        """
        check_request(
            prompt,
            parameters,
            positions=self._positions,
            vocab_size=self._vocab_size,
            adapters=self._adapters,
        )
        key = next(self._keys)
        limit = min(len(prompt) + parameters.max_new_tokens, self._positions or NO_LIMIT)
        numbers = uniform_numbers(parameters.seed, skip)
        self._waiting.append(
            RequestState(key, list(prompt), len(prompt), parameters, limit, numbers)
        )
        return key

    def cancel(self, key: int) -> None:
        """See `DecodingEngine`."""
        self._waiting = deque(row for row in self._waiting if row.key != key)
        with self._gradients():
            self._leave([row for row in self._rows if row.key == key])

    def step(self) -> list[Progress]:
        """See `DecodingEngine`. A request makes at most one token of progress."""
        # The head computes in fp32 for this step only: the model may be used between two of them.
        with self._gradients(), self._head:
            return self._advance()

    def counts(self) -> EngineCounts:
        """See `DecodingEngine`."""
        return EngineCounts(
            slots=self._slots,
            running=len(self._rows),
            waiting=len(self._waiting),
            prefilled=self._prefilled,
            reused=self._reused,
            drawn=self._drawn,
            passes=self._passes,
        )

    @abstractmethod
    def _advance(self) -> list[Progress]:
        """Make the passes of a step."""

    @abstractmethod
    def _leave(self, rows: Iterable[RequestState]) -> None:
        """Free the slots of rows."""

    def _record(
        self, rows: Sequence[RequestState], sampler: RowSampler, logits_BV: torch.Tensor
    ) -> tuple[list[Progress], torch.Tensor]:
        """Draw each row's next token; return the progress, and the tokens [B]. Rows that have ended leave."""
        if self._watch is not None:
            self._watch([row.key for row in rows], logits_BV)
        draws = sampler.draw(logits_BV)
        progress, ended = [], []
        for number, (row, token) in enumerate(zip(rows, draws.tokens, strict=True)):
            row.tokens.append(token)
            finish: Finish | None = None
            if token in row.parameters.stop_ids:
                finish = "stop"
            elif len(row.tokens) >= row.limit:
                finish = "length"
            if finish is not None:
                ended.append(row)
            drawn = None
            if draws.drawn is not None and row.parameters.drawn_log_probs:
                drawn = draws.drawn[number]
            one = DrawnToken(token, draws.model.get(number), drawn)
            made = Progress(row.key, (one,), finish)
            if len(row.tokens) == row.prompt_length + 1:
                scores = tuple(row.prompt_log_probs) if row.parameters.prompt_log_probs else None
                made = replace(made, prompt=scores, reused=row.reused)
            progress.append(made)
        self._drawn += len(rows)
        self._leave(ended)
        return progress, draws.on_device

    def _score_prompt(self, row: RequestState, logits_TV: torch.Tensor, first: int) -> None:
        """Record log-probabilities of the prompt's tokens after those at `first` and the following places."""
        followers = row.tokens[first + 1 : min(first + 1 + len(logits_TV), row.prompt_length)]
        if followers:
            token_N = torch.tensor(followers, device=logits_TV.device)
            counts = [row.parameters.top_log_probs or 0] * len(followers)
            row.prompt_log_probs += log_probs_of(
                logits_TV[: len(followers)].float(), token_N, counts
            )

    def _adapter_arguments(self, rows: Sequence[RequestState]) -> dict[str, object]:
        """Return peft's argument for the adapter of each row, where this engine has adapters."""
        if not self._adapters:
            return {}
        return {"adapter_names": [row.parameters.adapter or "__base__" for row in rows]}


def forward_parameters(model: PreTrainedModel) -> frozenset[str]:
    """Return the names of the arguments that a model's pass takes."""
    # The wrapper of an adapter accepts any argument, so ask the model inside.
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(getattr(inner, "forward", inner)).parameters)


def _vocab_size(model: PreTrainedModel) -> int | None:
    """Return the number of rows of the input embeddings, where the model tells them."""
    if not hasattr(model, "get_input_embeddings"):
        return None
    return getattr(model.get_input_embeddings(), "num_embeddings", None)


def _fp32_head(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Return a context in which the output matrix computes in fp32."""
    head = model.get_output_embeddings()
    # Nothing is to be converted in an fp32 model, and the context would cost a small one time.
    whole = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    return nullcontext() if whole else Fp32Head(head)
