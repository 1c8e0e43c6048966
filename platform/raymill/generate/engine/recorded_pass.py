"""Decode passes on a CPU without Python: the operations of a pass are recorded, and repeated by torch.

In a small model Python takes half of a pass. A recording holds for one shape and for models that compute the
same operations whatever the tokens are, so only families that are known to do so are recorded. The operations
are the same, and so are their results, which the first use of every recording checks.

Shapes: B rows, W attended positions, V vocabulary; keys and values as in `slots.py`.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from raymill.generate.engine.slots import SlotMemory, Span
from raymill.model.shape import FAMILIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Others choose frequencies by the length of the text.
ROPES = ("default", "linear", "llama3")
# Passes of a shape before it is recorded, which takes as long as some dozens of them.
FIRST_PASSES = 16
# Recordings that are kept, the most recently used ones.
KEPT = 64


def can_record(model: PreTrainedModel) -> bool:
    """Tell whether passes of a model may be recorded."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    return (
        next(model.parameters()).device.type == "cpu"
        and getattr(model.config, "model_type", None) in FAMILIES
        and rope.get("rope_type", "default") in ROPES
    )


class RecordedPasses:
    """Passes of a model over one token per row, recorded by their shape once this is seen to recur."""

    def __init__(self, model: PreTrainedModel, memory: SlotMemory) -> None:
        self._pass = _Pass(model, memory).eval()
        self._memory = memory
        self._counts: dict[tuple[int, ...], int] = {}
        self._recordings: OrderedDict[tuple[int, ...], Any] = OrderedDict()
        # False once a recording gave other logits than the model.
        self._right = True

    def logits(
        self, token_B1: torch.Tensor, position_B1: torch.Tensor, mask_B11W: torch.Tensor
    ) -> torch.Tensor:
        """[B, 1, V] Logits of the pass that the memory's span describes."""
        span = self._memory.span
        assert span is not None, "a pass needs a span"
        inputs = (token_B1, position_B1, span.targets, mask_B11W, *self._memory.tensors())
        if not inputs[4:] or not self._right:
            return self._plain(span, inputs)
        shape = (span.rows, span.width, self._memory.slots, self._memory.width)
        if shape in self._recordings:
            self._recordings.move_to_end(shape)
            logits_B1V: torch.Tensor = self._recordings[shape](*inputs)
            return logits_B1V
        count = self._counts[shape] = self._counts.get(shape, 0) + 1
        # All ones would hide an exchanged dimension from the recording.
        if count < FIRST_PASSES or span.rows == 1:
            return self._plain(span, inputs)
        return self._recorded(shape, span, inputs)

    def _plain(self, span: Span, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self._pass.span = span
        logits_B1V: torch.Tensor = self._pass(*inputs)
        return logits_B1V

    def _recorded(
        self, shape: tuple[int, ...], span: Span, inputs: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        """Record a pass, and return its logits; keep the recording if it gives the same."""
        self._pass.span = span
        # Other tokens than those of the check, so that what depends on them is found out.
        others = (inputs[0].flip(0), *inputs[1:])
        with warnings.catch_warnings():
            # torch warns of sizes that become constants, as they are meant to.
            warnings.simplefilter("ignore")
            trace: Callable[..., Any] = torch.jit.trace
            recording = trace(self._pass, others, check_trace=False, strict=False)
        found_B1V = recording(*inputs)
        # Last, because each of the three writes keys and values.
        expected_B1V = self._plain(span, inputs)
        self._right = torch.equal(found_B1V, expected_B1V)
        if self._right:
            self._recordings[shape] = recording
            if len(self._recordings) > KEPT:
                self._recordings.popitem(last=False)
        return expected_B1V


class _Pass(torch.nn.Module):
    """A model's pass as a function of tensors alone, as recording needs it."""

    def __init__(self, model: PreTrainedModel, memory: SlotMemory) -> None:
        super().__init__()
        self._model, self._memory = model, memory
        self.span: Span | None = None

    def forward(
        self,
        token_B1: torch.Tensor,
        position_B1: torch.Tensor,
        targets: torch.Tensor,
        mask_B11W: torch.Tensor,
        *stored_SWHD: torch.Tensor,
    ) -> torch.Tensor:
        """Return the logits; keys and values are written in place."""
        span = self.span
        assert span is not None, "a pass needs a span"
        self._memory.span = Span(span.first, span.rows, span.width, targets)
        self._memory.use(stored_SWHD)
        output = self._model(
            input_ids=token_B1,
            position_ids=position_B1,
            attention_mask=mask_B11W,
            cache=self._memory.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits_B1V: torch.Tensor = output.logits
        return logits_B1V
