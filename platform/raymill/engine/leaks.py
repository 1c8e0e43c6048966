"""Check before the first step that a token sees its own sequence up to itself, and nothing else.

transformers keeps packed sequences apart by positions that restart, or by their bounds, but not for every
family and attention kernel. A leak changes no shape and raises nothing, so it is looked for by experiment:
some tokens are replaced, and hidden states that must not depend on them are compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from raymill.engine.compilation import uncompiled
from raymill.engine.evaluation import evaluating
from raymill.engine.group import WorkerGroup, on_all_ranks
from raymill.errors import ConfigError
from raymill.objective.forward import Sequences, run_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HALF = 8  # tokens of each of the two sequences in a trial row
# Relative to the hidden states' size. Without a leak the bits are equal, except for some kernels' rounding.
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}


def refuse_leaks(
    model: PreTrainedModel,
    head: torch.nn.Module,
    packing: str | None,
    attention: str,
    precision: str,
    group: WorkerGroup,
) -> None:
    """Check that sequences don't see other sequences or rows, and tokens don't see later ones. Collective.

    `head` is the module that takes the model's last hidden states; `packing` names the key that puts several
    sequences into a row, if the job has one, and `attention` the key of the attention kernel.

    Raises:
        ConfigError: on all ranks; there is a leak, so what a sequence teaches would depend on its neighbors.
    """
    in_row, over_rows = leaks(model, head, packing is not None, group.device)
    ahead = sees_ahead(model, head, packing is not None, group.device)
    problem = None
    if in_row > TOLERANCE[precision]:
        problem = (
            f"{packing}=true: this model's attention doesn't keep the sequences of a row apart (with another "
            f"neighbor, hidden states differ by {in_row:.1e} of their size); set {packing}=false, or another "
            f"{attention}="
        )
    elif over_rows > TOLERANCE[precision]:
        problem = (
            f"{attention}: this model's attention doesn't keep the rows of a batch apart (with another row "
            f"next to them, hidden states differ by {over_rows:.1e} of their size); set {attention}=sdpa"
        )
    elif ahead > TOLERANCE[precision]:
        problem = (
            "parent: tokens of this model see those that follow them (with others behind, hidden states differ "
            f"by {ahead:.1e} of their size), so it would learn to copy; choose a model whose tokens don't "
            "(encoders have is_decoder in config.json for it)"
        )

    def refuse() -> None:
        if problem is not None:
            raise ConfigError([problem])

    # Ranks may round differently, so one may find a leak that the others don't.
    on_all_ranks(group, refuse)


def leaks(
    model: PreTrainedModel, head: torch.nn.Module, packed: bool, device: torch.device
) -> tuple[float, float]:
    """Return the relative change of hidden states when another sequence changes.

    First for a sequence of the same row (0 where rows aren't `packed`), then for one of another row.
    """
    before_BTH, after_BTH = _changed(model, head, packed, device, (slice(1), slice(HALF)))
    # The first sequence of row 0 changed: its second one and row 1 must not.
    in_row = _difference(before_BTH[0, HALF:], after_BTH[0, HALF:]) if packed else 0.0
    return in_row, _difference(before_BTH[1], after_BTH[1])


def sees_ahead(
    model: PreTrainedModel, head: torch.nn.Module, packed: bool, device: torch.device
) -> float:
    """Return the relative change of hidden states when later tokens of their sequence change."""
    middle = HALF + HALF // 2
    before_BTH, after_BTH = _changed(model, head, packed, device, (slice(2), slice(middle, None)))
    # The second half of the second sequence changed: its first half must not.
    return _difference(before_BTH[:, HALF:middle], after_BTH[:, HALF:middle])


def _changed(
    model: PreTrainedModel,
    head: torch.nn.Module,
    packed: bool,
    device: torch.device,
    where: tuple[slice, slice],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the head's inputs for two rows ([B, T, H]), before and after the tokens at `where` change."""
    tokens_BT = torch.arange(1, 4 * HALF + 1).view(2, 2 * HALF)
    other_BT = tokens_BT.clone()
    other_BT[where] = tokens_BT[where].flip(1)
    opens_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    opens_BT[:, HALF] = packed
    # Masks and bounds are computed outside the compiled layers, so the check need not compile them.
    with uncompiled(), evaluating(model):
        before_BTH, after_BTH = (
            _hidden(model, head, Sequences.from_tokens(tokens, opens_BT), device)
            for tokens in (tokens_BT, other_BT)
        )
    return before_BTH, after_BTH


def _hidden(
    model: PreTrainedModel, head: torch.nn.Module, sequences: Sequences, device: torch.device
) -> torch.Tensor:
    """Return the head's input, [B, T, H]."""
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        run_model(model, sequences, device)
    finally:
        handle.remove()
    return seen[0].double().view(*sequences.tokens.shape, -1)


def _difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / first.norm())
