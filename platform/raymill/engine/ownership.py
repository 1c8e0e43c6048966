"""Ownership of the training state: the elements of each parameter that a rank has, under each ZeRO stage.

DeepSpeed keeps fp32 weights and moments in a different layout for each stage. Here each layout is reduced to
the same description: for a named parameter, the partition of its flattened elements over the ranks, and live
views of this rank's weights and moments. Checkpoints are written from these views and loaded into them, which
is why any stage and world size can read any checkpoint.

Written against DeepSpeed 0.19.8, whose attributes are used below (`bit16_groups`, `grad_position`, …).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from raymill.checkpoint.fragments import ADAMW_MOMENTS, WEIGHT, FloatArray, FragmentReader
from raymill.checkpoint.layout import ParameterEntry, Want
from raymill.checkpoint.partition import Partition

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.base_optimizer import ZeROOptimizer


# Elements that are held in host memory at once on their way to a GPU.
_COPIED_ELEMENTS = 2**26


@dataclass(frozen=True)
class Trained:
    """A trained parameter: its name, its unpartitioned shape, and the moments that its optimizer keeps."""

    name: str
    shape: tuple[int, ...]
    moments: tuple[str, ...]


@dataclass(frozen=True)
class Owned:
    """Elements [start, start + numel) of a parameter: a rank's part by the partition.

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

    @property
    def entry(self) -> ParameterEntry:
        """The parameter as a checkpoint's index describes it."""
        return ParameterEntry(self.parameter.shape, self.parameter.moments)

    def weight(self) -> torch.Tensor:
        """Return a live view of the fp32 weights."""
        return self.key.detach().view(-1).narrow(0, self.offset, self.numel)

    def moment(self, optimizer: torch.optim.Optimizer, kind: str) -> torch.Tensor:
        """Return a live view of one moment; create the optimizer's state if there was no step yet."""
        state = self.state(optimizer)
        view: torch.Tensor = state[kind].detach().view(-1).narrow(0, self.offset, self.numel)
        return view

    def views(self, optimizer: torch.optim.Optimizer) -> Mapping[str, torch.Tensor]:
        """Return kind → live view, flat."""
        moments = {kind: self.moment(optimizer, kind) for kind in self.parameter.moments}
        return {WEIGHT: self.weight()} | moments

    def arrays(self, optimizer: torch.optim.Optimizer) -> Mapping[str, FloatArray]:
        """Return kind → flat fp32 array on the host; a state that lives on the host isn't copied."""
        return {kind: view.float().cpu().numpy() for kind, view in self.views(optimizer).items()}

    def state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the optimizer's state for `key`, created as its first step would create it."""
        state: dict[str, Any] = optimizer.state[self.key]
        moments = self.parameter.moments
        # Before the first step torch's optimizers have no state to load a checkpoint into.
        if moments[0] not in state:
            if moments == ADAMW_MOMENTS:
                state["step"] = torch.zeros((), dtype=torch.float32, device=self.key.device)
            for kind in moments:
                state[kind] = torch.zeros_like(self.key, memory_format=torch.preserve_format)
        return state

    def set_updates(self, optimizer: torch.optim.Optimizer, updates: int) -> None:
        """Set AdamW's count of updates; Muon has none."""
        state = self.state(optimizer)
        if "step" in state:
            state["step"].fill_(float(updates))


class Destinations:
    """Live views that a checkpoint is read into, many at once.

    Those on the host are read into directly. Those on a GPU are copied from host memory, of which
    no more than a few hundred MiB are used.
    """

    def __init__(self, reader: FragmentReader) -> None:
        self._reader = reader
        self._wants: list[tuple[Want, torch.Tensor | None]] = []
        self._copied = 0

    def add(self, kind: str, owned: Owned, optimizer: torch.optim.Optimizer) -> None:
        """Add the view of one kind of a rank's part of a parameter."""
        view = owned.weight() if kind == WEIGHT else owned.moment(optimizer, kind)
        on_host = view.device.type == "cpu" and view.dtype == torch.float32
        memory = view if on_host else torch.empty(view.numel(), dtype=torch.float32)
        want = Want(kind, owned.name, memory.numpy(), owned.start)
        self._wants.append((want, None if on_host else view))
        self._copied += 0 if on_host else view.numel()
        if self._copied >= _COPIED_ELEMENTS:
            self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Read into the views that were added since the last call."""
        self._reader.load([want for want, _ in self._wants])
        for want, view in self._wants:
            if view is not None:
                view.copy_(torch.from_numpy(want.out))
        self._wants, self._copied = [], 0


def owned_by_this_rank(
    engine: DeepSpeedEngine,
    parameters: Mapping[torch.nn.Parameter, Trained],
    rank: int,
    world_size: int,
) -> Iterator[Owned]:
    """Return this rank's share of the training state, in the order of `parameters`.

    These are the module's trainable parameters, tied ones once.
    """
    return (owned for owned in layout(engine, parameters, rank, world_size) if owned.numel > 0)


def layout(
    engine: DeepSpeedEngine,
    parameters: Mapping[torch.nn.Parameter, Trained],
    rank: int,
    world_size: int,
) -> Iterator[Owned]:
    """Return `owned_by_this_rank` including parameters of which this rank owns nothing."""
    stage = int(engine.zero_optimization_stage())
    if stage == 3:
        return _stage_3(engine.optimizer, parameters, rank)
    if stage > 0:
        return _stage_1_and_2(engine.optimizer, parameters, rank)
    return _stage_0(engine.optimizer, parameters, rank, world_size)


def _stage_0(
    optimizer: ZeROOptimizer,
    parameters: Mapping[torch.nn.Parameter, Trained],
    rank: int,
    world_size: int,
) -> Iterator[Owned]:
    """Yield an equal part of each parameter: every rank has everything, so the parts are assigned here."""
    masters: dict[torch.nn.Parameter, torch.Tensor] = {}
    # In bf16 DeepSpeed keeps fp32 copies, group by group.
    if hasattr(optimizer, "fp32_groups"):
        for low, high in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            masters.update(zip(low, high, strict=True))
    for parameter, trained in parameters.items():
        numel = parameter.numel()
        # Rounded up, so the last ranks may own less, or nothing.
        partition = Partition(numel, 0, -(-numel // world_size))
        start, share = partition.range_of(rank)
        yield Owned(trained, partition, start, share, masters.get(parameter, parameter), start)


def _stage_1_and_2(
    optimizer: ZeROOptimizer, parameters: Mapping[torch.nn.Parameter, Trained], rank: int
) -> Iterator[Owned]:
    """Yield parts of groups: the parameters of a group are concatenated and cut into one part per rank."""
    # DeepSpeed's BF16_Optimizer and its ZeRO 1 and 2 optimizer have different attributes.
    if hasattr(optimizer, "fp32_groups_flat_partition"):
        flats, groups = optimizer.fp32_groups_flat_partition, optimizer.bf16_groups
        paddings = [[0] * len(group) for group in groups]
    else:
        flats, groups = (
            optimizer.single_partition_of_fp32_groups,
            optimizer.round_robin_bit16_groups,
        )
        paddings = optimizer.round_robin_bit16_padding
    positions: dict[torch.nn.Parameter, tuple[torch.Tensor, int]] = {}
    for flat, group, padding in zip(flats, groups, paddings, strict=True):
        first = 0
        for parameter, gap in zip(group, padding, strict=True):
            positions[parameter] = flat, first
            first += parameter.numel() + gap
    for parameter, trained in parameters.items():
        flat, first = positions[parameter]
        partition = Partition(parameter.numel(), first, flat.numel())
        start, numel = partition.range_of(rank)
        offset = first + start - rank * flat.numel() if numel else 0
        yield Owned(trained, partition, start, numel, flat, offset)


def _stage_3(
    optimizer: ZeROOptimizer, parameters: Mapping[torch.nn.Parameter, Trained], rank: int
) -> Iterator[Owned]:
    """Yield parts of parameters: each is cut into equal, padded parts; no rank owns the padding."""
    for parameter, trained in parameters.items():
        group, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
        partition = Partition(parameter.ds_numel, 0, part)  # type: ignore[attr-defined]
        start, numel = partition.range_of(rank)
        key = optimizer.fp32_partitioned_groups_flat[group]
        yield Owned(trained, partition, start, numel, key, offset)
