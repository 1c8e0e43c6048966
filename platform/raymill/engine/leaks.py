"""Before the first step: a token sees its own sequence up to itself, in this model and with this kernel.

transformers keeps packed sequences apart by positions that restart, or by their bounds, but not for every
family and kernel; and what leaks changes no shape and raises nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from raymill.engine.agreement import agreed
from raymill.engine.compilation import uncompiled
from raymill.engine.evaluation import evaluating
from raymill.engine.group import WorkerGroup
from raymill.errors import ConfigError
from raymill.objective.forward import Sequences, run_model

HALF = 8  # tokens of each sequence of the rows that are tried
# Of the hidden states' own size. What doesn't leak gives the same bits, but for a kernel's odd rounding.
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-3}


def refuse_leaks(
    model: Any,
    head: torch.nn.Module,
    packing: str | None,
    attention: str,
    precision: str,
    group: WorkerGroup,
) -> None:
    """Make sure that nothing of a sequence reaches the others of its row, or other rows, and nothing of a token
    those before it. Collective.

    `head` is the module that takes the model's last hidden states; `packing` names the key that puts several
    sequences into a row, where one does, and `attention` the kernel's.

    Raises:
        ConfigError: on all ranks; something does, so what a sequence teaches would depend on its neighbors.
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
            f"beside them, hidden states differ by {over_rows:.1e} of their size); set {attention}=sdpa"
        )
    elif ahead > TOLERANCE[precision]:
        problem = (
            "parent: tokens of this model see those that follow them (with others behind, hidden states differ "
            f"by {ahead:.1e} of their size), so it would learn to copy; choose a model whose tokens don't "
            "(encoders have is_decoder in config.json for it)"
        )
    for found in group.gather(problem):
        if found is not None:
            raise agreed(ConfigError([found]))


def leaks(
    model: Any, head: torch.nn.Module, packed: bool, device: torch.device
) -> tuple[float, float]:
    """By how much hidden states change, relative to their size, where another sequence changes: one of the same
    row (0 where rows aren't `packed`), and one of another row."""
    one_BTH, other_BTH = _changed(model, head, packed, device, (slice(1), slice(HALF)))
    in_row = _difference(one_BTH[0, HALF:], other_BTH[0, HALF:]) if packed else 0.0
    return in_row, _difference(one_BTH[1], other_BTH[1])


def sees_ahead(model: Any, head: torch.nn.Module, packed: bool, device: torch.device) -> float:
    """By how much hidden states change, relative to their size, where what follows them changes."""
    begin = HALF + HALF // 2
    one_BTH, other_BTH = _changed(model, head, packed, device, (slice(2), slice(begin, None)))
    return _difference(one_BTH[:, HALF:begin], other_BTH[:, HALF:begin])


def _changed(
    model: Any,
    head: torch.nn.Module,
    packed: bool,
    device: torch.device,
    where: tuple[slice, slice],
) -> tuple[torch.Tensor, torch.Tensor]:
    """([B, T, H], [B, T, H]) What the head takes of two rows: as they are, and with other tokens at places."""
    tokens_BT = torch.arange(1, 4 * HALF + 1).view(2, 2 * HALF)
    other_BT = tokens_BT.clone()
    other_BT[where] = tokens_BT[where].flip(1)
    opens_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
    opens_BT[:, HALF] = packed
    # Masks and bounds are made outside of what `train.compile` compiles.
    with uncompiled(), evaluating(model):
        one_BTH, other_BTH = (
            _hidden(model, head, Sequences.from_tokens(tokens, opens_BT), device)
            for tokens in (tokens_BT, other_BT)
        )
    return one_BTH, other_BTH


def _hidden(
    model: Any, head: torch.nn.Module, sequences: Sequences, device: torch.device
) -> torch.Tensor:
    """[B, T, H] What the head takes."""
    seen: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    try:
        run_model(model, sequences, device)
    finally:
        handle.remove()
    return seen[0].double().view(*sequences.tokens.shape, -1)


def _difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).norm() / first.norm())
