"""Which elements of which parameters this rank owns, under each ZeRO stage.

DeepSpeed keeps fp32 weights and Adam moments in a layout of its own for each stage. Here each layout is
reduced to the same thing: for a named parameter, a range of its flattened elements and live views of
that range's weights and moments. Checkpoints are written from these views and loaded into them, which
is why any stage and world size can read any checkpoint.

Read against DeepSpeed 0.19.8; the names below are its own (`_hp_mapping`, `grad_position`, …).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raymill.checkpoint.fragments import MOMENTS, WEIGHT, FloatArray


@dataclass(frozen=True)
class Owned:
    """Elements [start, start + numel) of parameter `name`.

    `key` is the tensor under which the optimizer files its state; [offset, offset + numel) of the
    flattened key are these elements.
    """

    name: str
    start: int
    numel: int
    key: torch.Tensor
    offset: int

    def weight(self) -> torch.Tensor:
        """Live view of the fp32 weights."""
        return self.key.detach().view(-1).narrow(0, self.offset, self.numel)

    def moment(self, optimizer: torch.optim.Optimizer, kind: str) -> torch.Tensor:
        """Live view of one Adam moment; creates the optimizer's state if there was no step yet."""
        state = optimizer_state(optimizer, self.key)
        view: torch.Tensor = state[kind].detach().view(-1).narrow(0, self.offset, self.numel)
        return view

    def views(self, optimizer: torch.optim.Optimizer) -> Mapping[str, torch.Tensor]:
        """kind → live view of it, flat."""
        return {WEIGHT: self.weight()} | {kind: self.moment(optimizer, kind) for kind in MOMENTS}

    def arrays(self, optimizer: torch.optim.Optimizer) -> Mapping[str, FloatArray]:
        """kind → flat fp32 array on the host; where that is where the state lives, it is the state."""
        return {kind: view.float().cpu().numpy() for kind, view in self.views(optimizer).items()}


def optimizer_state(optimizer: torch.optim.Optimizer, key: torch.Tensor) -> dict[str, Any]:
    """AdamW's state for `key`, made as its first step would make it."""
    state: dict[str, Any] = optimizer.state[key]
    if "exp_avg" not in state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=key.device)
        for kind in MOMENTS:
            state[kind] = torch.zeros_like(key, memory_format=torch.preserve_format)
    return state


def owned_by_this_rank(
    engine: Any, names: Mapping[torch.nn.Parameter, str], rank: int, world_size: int
) -> Iterator[Owned]:
    """This rank's share of the training state, in the order of `names`.

    `names` maps the module's trainable parameters to their names, tied ones once.
    """
    stage = int(engine.zero_optimization_stage())
    if stage == 3:
        return _stage_3(engine.optimizer, names, rank)
    if stage > 0:
        return _stage_1_and_2(engine.optimizer, names)
    return _stage_0(engine.optimizer, names, rank, world_size)


def _stage_0(
    optimizer: Any, names: Mapping[torch.nn.Parameter, str], rank: int, world_size: int
) -> Iterator[Owned]:
    """Everything is everywhere: each rank answers for an equal part of each parameter."""
    masters: dict[torch.nn.Parameter, torch.Tensor] = {}
    if hasattr(optimizer, "fp32_groups"):  # bf16 keeps fp32 copies, group by group
        for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            masters.update(zip(low, high, strict=True))
    for parameter, name in names.items():
        part = -(-parameter.numel() // world_size)
        start = min(rank * part, parameter.numel())
        numel = min(part, parameter.numel() - start)
        if numel > 0:
            yield Owned(name, start, numel, masters.get(parameter, parameter), start)


def _stage_1_and_2(optimizer: Any, names: Mapping[torch.nn.Parameter, str]) -> Iterator[Owned]:
    """A flat partition a parameter group; DeepSpeed maps each parameter to its piece of it."""
    flats = (
        optimizer.fp32_groups_flat_partition
        if hasattr(optimizer, "fp32_groups_flat_partition")  # BF16_Optimizer
        else optimizer.single_partition_of_fp32_groups
    )
    for parameter, name in names.items():
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            yield Owned(
                name,
                mapping.lp_fragment_address.start,
                mapping.lp_fragment_address.numel,
                flats[mapping.param_group_index],
                mapping.hp_fragment_address.start,
            )


def _stage_3(optimizer: Any, names: Mapping[torch.nn.Parameter, str], rank: int) -> Iterator[Owned]:
    """Each parameter is cut into equal, padded parts; the padding is nobody's."""
    for parameter, name in names.items():
        group, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank * part
        numel = min(part, parameter.ds_numel - start)  # type: ignore[attr-defined]
        if numel > 0:
            yield Owned(name, start, numel, optimizer.fp32_partitioned_groups_flat[group], offset)
