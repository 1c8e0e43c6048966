"""What samples answers, as everything else sees it: tokens in, tokens out, weights when they are told.

Tokens are never text in between: an answer that is decoded and encoded again may be other tokens than
those that were drawn, with other probabilities.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from raymill.generate.batch import Completion
from raymill.rl.rollout.weights import Bucket


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int
    temperature: float
    top_p: float
    stop_ids: tuple[int, ...]
    pad_id: int = 0


class RolloutEngine(Protocol):
    """A model that samples; its weights are the policy's as of the last `load`."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """An answer a prompt, with the log-probabilities of its tokens, all in one batch.

        Equal arguments and weights give equal answers, bit for bit, on equal hardware.

        Raises:
            RolloutError: there are no weights yet, or a prompt leaves no room for its answer.
        """
        ...

    def load(self, buckets: Iterable[Bucket]) -> None:
        """Take over all weights.

        Raises:
            RolloutError: they aren't exactly the model's.
        """
        ...

    def digest(self) -> str:
        """`weights_digest` of the weights as the engine holds them."""
        ...


class EngineSpec(Protocol):
    """How to make an engine, in whichever process: to be pickled, so small."""

    @property
    def dtype(self) -> Literal["fp32", "bf16"]:
        """What weights are converted to before they are sent."""
        ...

    def build(self) -> RolloutEngine:
        """An engine without weights."""
        ...
