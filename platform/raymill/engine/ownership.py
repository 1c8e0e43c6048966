"""Which elements of which parameters this rank owns, under each ZeRO stage.

DeepSpeed keeps fp32 weights and moments in a layout of its own for each stage. Here each layout is
reduced to the same thing: for a named parameter, how its flattened elements are cut over the ranks, and
live views of this rank's weights and moments. Checkpoints are written from these views and loaded into
them, which is why any stage and world size can read any checkpoint.

Read against DeepSpeed 0.19.8; the names below are its own (`bit16_groups`, `grad_position`, …).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from raymill.checkpoint.fragments import ADAMW_MOMENTS, WEIGHT, FloatArray
from raymill.engine.matrix_exchange import Partition


@dataclass(frozen=True)
class Trained:
    """A trained parameter's name, its shape when whole, and the moments that its optimizer keeps."""

    name: str
    shape: tuple[int, ...]
    moments: tuple[str, ...]


@dataclass(frozen=True)
class Owned:
    """Elements [start, start + numel) of a parameter: what a rank has by the partition.

    `key` is the tensor under which the optimizer files its state; [offset, offset + numel) of the
    flattened key are these elements.
    """

    parameter: Trained
    partition: Partition
    start: int
    numel: int
    key: torch.Tensor
    offset: int

    @property
    def name(self) -> str:
        return self.parameter.name

    def weight(self) -> torch.Tensor:
        """Live view of the fp32 weights."""
        return self.key.detach().view(-1).narrow(0, self.offset, self.numel)

    def moment(self, optimizer: torch.optim.Optimizer, kind: str) -> torch.Tensor:
        """Live view of one moment; creates the optimizer's state if there was no step yet."""
        state = self.state(optimizer)
        view: torch.Tensor = state[kind].detach().view(-1).narrow(0, self.offset, self.numel)
        return view

    def views(self, optimizer: torch.optim.Optimizer) -> Mapping[str, torch.Tensor]:
        """kind → live view of it, flat."""
        moments = {kind: self.moment(optimizer, kind) for kind in self.parameter.moments}
        return {WEIGHT: self.weight()} | moments

    def arrays(self, optimizer: torch.optim.Optimizer) -> Mapping[str, FloatArray]:
        """kind → flat fp32 array on the host; where that is where the state lives, it is the state."""
        return {kind: view.float().cpu().numpy() for kind, view in self.views(optimizer).items()}

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state for `key`, made as its first step would make it."""
        state: dict[str, Any] = optimizer.state[self.key]
        moments = self.parameter.moments
        if moments[0] not in state:
            if moments == ADAMW_MOMENTS:
                state["step"] = torch.zeros((), dtype=torch.float32, device=self.key.device)
            for kind in moments:
                state[kind] = torch.zeros_like(self.key, memory_format=torch.preserve_format)
        return state

    def set_updates(self, optimizer: torch.optim.Optimizer, updates: int) -> None:
        """Tell AdamW how many updates it has made; Muon doesn't count them."""
        state = self.state(optimizer)
        if "step" in state:
            state["step"].fill_(float(updates))


def owned_by_this_rank(
    engine: Any, parameters: Mapping[torch.nn.Parameter, Trained], rank: int, world_size: int
) -> Iterator[Owned]:
    """This rank's share of the training state, in the order of `parameters`: the module's trainable ones, tied
    ones once."""
    return (owned for owned in layout(engine, parameters, rank, world_size) if owned.numel > 0)


def layout(
    engine: Any, parameters: Mapping[torch.nn.Parameter, Trained], rank: int, world_size: int
) -> Iterator[Owned]:
    """`owned_by_this_rank`, and the parameters of which this rank owns nothing."""
    stage = int(engine.zero_optimization_stage())
    if stage == 3:
        return _stage_3(engine.optimizer, parameters, rank)
    if stage > 0:
        return _stage_1_and_2(engine.optimizer, parameters, rank)
    return _stage_0(engine.optimizer, parameters, rank, world_size)


def _stage_0(
    optimizer: Any,
    parameters: Mapping[torch.nn.Parameter, Trained],
    rank: int,
    world_size: int,
) -> Iterator[Owned]:
    """Everything is everywhere: each rank answers for an equal part of each parameter."""
    masters: dict[torch.nn.Parameter, torch.Tensor] = {}
    if hasattr(optimizer, "fp32_groups"):  # bf16 keeps fp32 copies, group by group
        for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            masters.update(zip(low, high, strict=True))
    for parameter, trained in parameters.items():
        numel = parameter.numel()
        partition = Partition(numel, 0, -(-numel // world_size))
        start, share = partition.range_of(rank)
        yield Owned(trained, partition, start, share, masters.get(parameter, parameter), start)


def _stage_1_and_2(
    optimizer: Any, parameters: Mapping[torch.nn.Parameter, Trained], rank: int
) -> Iterator[Owned]:
    """The parameters of a group lie one behind the other, and each rank has an equal part of the whole."""
    if hasattr(optimizer, "fp32_groups_flat_partition"):  # BF16_Optimizer
        flats, groups = optimizer.fp32_groups_flat_partition, optimizer.bf16_groups
        paddings = [[0] * len(group) for group in groups]
    else:
        flats, groups = (
            optimizer.single_partition_of_fp32_groups,
            optimizer.round_robin_bit16_groups,
        )
        paddings = optimizer.round_robin_bit16_padding
    places: dict[torch.nn.Parameter, tuple[torch.Tensor, int]] = {}
    for flat, group, padding in zip(flats, groups, paddings, strict=True):
        first = 0
        for parameter, gap in zip(group, padding, strict=True):
            places[parameter] = flat, first
            first += parameter.numel() + gap
    for parameter, trained in parameters.items():
        flat, first = places[parameter]
        partition = Partition(parameter.numel(), first, flat.numel())
        start, numel = partition.range_of(rank)
        offset = first + start - rank * flat.numel() if numel else 0
        yield Owned(trained, partition, start, numel, flat, offset)


def _stage_3(
    optimizer: Any, parameters: Mapping[torch.nn.Parameter, Trained], rank: int
) -> Iterator[Owned]:
    """Each parameter is cut into equal, padded parts; the padding is nobody's."""
    for parameter, trained in parameters.items():
        group, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
        partition = Partition(parameter.ds_numel, 0, part)  # type: ignore[attr-defined]
        start, numel = partition.range_of(rank)
        key = optimizer.fp32_partitioned_groups_flat[group]
        yield Owned(trained, partition, start, numel, key, offset)
