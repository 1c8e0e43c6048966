"""Decode passes on a CPU without Python: the operations of a pass are recorded, and repeated by torch.

In a small model Python takes half of a pass. One recording serves all numbers of rows and all widths, because
they are read from its inputs. That holds for models that compute the same operations whatever the tokens are,
so only families that are known to do so are recorded. The operations are the same, and so are their results,
which is checked in other shapes than the recorded one.

Shapes: B rows, W attended positions, V vocabulary; keys and values as in `slots.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from raymill.generate.engine.slots import Reaches, SlotMemory, Span
from raymill.model.shape import FAMILIES, context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Others choose frequencies by the length of the text.
ROPES = ("default", "linear", "llama3")
# Python's share of a larger model's pass is small, and recording takes a dozen passes.
MOST_PARAMETERS = 300_000_000
Recording = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Rows and attended width of a pass, and slots of the memory that it reads; all differ, so none hides."""

    rows: int
    width: int
    slots: int
    slot_width: int


RECORDED = Shape(3, 32, 5, 64)
# torch prepares a recording for speed in its first two runs, so there are at least two.
CHECKED = (Shape(4, 48, 6, 96), Shape(1, 16, 2, 32), Shape(2, 64, 3, 128))


def can_record(model: PreTrainedModel) -> bool:
    """Tell whether passes of a model may be recorded, and gain from it."""
    rope = getattr(model.config, "rope_parameters", None) or {}
    return (
        next(model.parameters()).device.type == "cpu"
        and getattr(model.config, "model_type", None) in FAMILIES
        and rope.get("rope_type", "default") in ROPES
        and len(Reaches.of(model.config).by_kind) == 1
        and sum(one.numel() for one in model.parameters()) <= MOST_PARAMETERS
    )


class RecordedPass:
    """Pass of a model over one token per row; `logits` repeats it on the memory's tensors."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def logits(
        self,
        token_B1: torch.Tensor,
        position_B1: torch.Tensor,
        mask_B11W: torch.Tensor,
        memory: SlotMemory,
    ) -> torch.Tensor:
        """[B, 1, V] Logits of the pass that the memory's span describes; it begins at the first slot."""
        span = memory.span
        assert span is not None and span.first == 0, "rows that decode have the first slots"
        return self._recording(token_B1, position_B1, span.targets, mask_B11W, *memory.tensors())


def record_pass(model: PreTrainedModel) -> RecordedPass | None:
    """Record a pass; return None if the recording gives other logits than the model in some shape."""
    example = _Example(model, RECORDED)
    with warnings.catch_warnings():
        # torch warns of sizes that become constants; those that must not are found by the check.
        warnings.simplefilter("ignore")
        trace: Callable[..., Recording] = torch.jit.trace
        recording = trace(example.pass_, example.inputs, check_trace=False, strict=False)
    for shape in CHECKED:
        example = _Example(model, shape)
        found_B1V = recording(*example.inputs)
        if not torch.equal(found_B1V, example.pass_(*example.inputs)):
            return None
    return RecordedPass(recording)


class _Example:
    """A pass in a shape, on a memory of its own, and inputs for it."""

    def __init__(self, model: PreTrainedModel, shape: Shape) -> None:
        device, dtype = next(model.parameters()).device, next(model.parameters()).dtype
        memory = SlotMemory(shape.slots, shape.slot_width, device)
        memory.reserve(shape.slots, shape.slot_width)
        self.pass_ = _Pass(model, memory).eval()
        rows_B1 = torch.arange(shape.rows, device=device)[:, None]
        position_B1 = (rows_B1 + shape.width // 2) % (context_length(model.config) or shape.width)
        inputs = (
            rows_B1 + 1,
            position_B1,
            (rows_B1 * shape.slot_width + position_B1)[:, 0],
            Reaches.of(model.config).masks(position_B1, shape.width, dtype),
        )
        # Memory is allocated in a first pass, which knows the shape of keys and values.
        self.pass_(*inputs)
        self.inputs: Sequence[Any] = (*inputs, *memory.tensors())


class _Pass(torch.nn.Module):
    """A model's pass as a function of tensors alone, as recording needs it."""

    def __init__(self, model: PreTrainedModel, memory: SlotMemory) -> None:
        super().__init__()
        self._model, self._memory = model, memory

    def forward(
        self,
        token_B1: torch.Tensor,
        position_B1: torch.Tensor,
        targets: torch.Tensor,
        mask_B11W: torch.Tensor,
        *stored_SWHD: torch.Tensor,
    ) -> torch.Tensor:
        """Return the logits; keys and values are written in place."""
        # Sizes of tensors are recorded as such, where numbers would become constants.
        self._memory.span = Span(0, token_B1.shape[0], mask_B11W.shape[-1], targets)
        if stored_SWHD:
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
