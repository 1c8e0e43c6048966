"""Constraints on answers inside vLLM, which calls a processor of logits for each request that has one.

Only `vllm_engine.py` imports this module, once vLLM is known to be there.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from raymill.generate.engine.request import TokenConstraint

# vLLM passes settings that it doesn't know on to its processors.
_KEY = "raymill_constraint"


def constraint_arguments(constraint: TokenConstraint | None) -> dict[str, Any] | None:
    """Return the settings of a request under which `ConstraintProcessor` finds its constraint."""
    return None if constraint is None else {_KEY: _Shared(constraint)}


class _Shared:
    """Constraint that isn't copied with the settings that hold it, since its state is the answer's."""

    def __init__(self, constraint: TokenConstraint) -> None:
        self.constraint = constraint

    def __deepcopy__(self, _: dict[int, Any]) -> _Shared:
        return self


class ConstraintProcessor(AdapterLogitsProcessor):  # type: ignore[misc]
    """Leaves of each request's logits those of the tokens that its constraint allows."""

    def is_argmax_invariant(self) -> bool:
        """Return False: the likeliest token may be one that isn't allowed."""
        return False

    def new_req_logits_processor(
        self, params: Any
    ) -> Callable[[list[int], torch.Tensor], torch.Tensor] | None:
        """Return what vLLM calls with a request's answer and next logits; None without a constraint."""
        arguments: Mapping[str, Any] = params.extra_args or {}
        shared = arguments.get(_KEY)
        return None if shared is None else _Mask(shared.constraint)


class _Mask:
    """One request's answer so far, as its constraint has seen it."""

    def __init__(self, constraint: TokenConstraint) -> None:
        self._constraint = constraint
        self._seen = 0

    def __call__(self, answer: list[int], logits_V: torch.Tensor) -> torch.Tensor:
        for token in answer[self._seen :]:
            self._constraint.accept(token)
        self._seen = len(answer)
        allowed_V = self._constraint.allowed().to(logits_V.device)
        # vLLM pads the vocabulary for its kernels.
        logits_V[len(allowed_V) :] = -torch.inf
        logits_V[: len(allowed_V)].masked_fill_(~allowed_V, -torch.inf)
        return logits_V
