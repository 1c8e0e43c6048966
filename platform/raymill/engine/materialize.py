"""Memory for a planned model's parameters on this worker: whole, or under ZeRO-3 its own slices alone.

Written against DeepSpeed 0.19.8: `zero.Init` converts parameters one by one, each a tensor whose elements
beyond this rank's slice are never touched. Nothing is broadcast.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from raymill.checkpoint.fragments import WEIGHT, FragmentReader
from raymill.checkpoint.partition import Partition
from raymill.engine.deepspeed_config import deepspeed_config
from raymill.engine.group import WorkerGroup
from raymill.errors import CheckpointError
from raymill.model.blueprint import Blueprint
from raymill.model.values import Values, fill
from raymill.schema.jobs import TrainJob

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CRITIC = "critic/"  # before the names of a critic's parameters in a checkpoint
# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


class Stored(Values):
    """The fp32 weights of a parameter in a checkpoint."""

    def __init__(self, reader: FragmentReader, name: str) -> None:
        self.shape = reader.index[name].shape
        self._reader, self._name = reader, name

    def read(self, start: int, stop: int) -> torch.Tensor:
        return torch.from_numpy(self._reader.read(WEIGHT, self._name, start, stop - start))


def continue_from(blueprint: Blueprint, reader: FragmentReader, prefix: str = "") -> None:
    """Give the trained parameters of a planned model a checkpoint's weights.

    Only the checkpoint's parameters whose names start with `prefix` belong to this model.

    Raises:
        CheckpointError: the checkpoint has other parameters than the model; names the first that differs.
    """
    parameters = {
        f"{prefix}{name}": parameter
        for name, parameter in blueprint.model.named_parameters()
        if parameter.requires_grad
    }
    saved = {name for name in reader.index if name.startswith(CRITIC) == (prefix == CRITIC)}
    missing = sorted(set(parameters) ^ saved)
    if missing:
        raise CheckpointError(
            f"{reader.location} and the model differ in {len(missing)} parameters, "
            f"first {missing[0]}: the parameters to train aren't those that were saved"
        )
    for name, parameter in parameters.items():
        stored = Stored(reader, name)
        if stored.shape != tuple(parameter.shape):
            raise CheckpointError(
                f"{reader.location}: {name} has shape {list(stored.shape)}, and in the model "
                f"{list(parameter.shape)}"
            )
        blueprint.values[parameter] = stored


def materialize(job: TrainJob, blueprint: Blueprint, group: WorkerGroup) -> PreTrainedModel:
    """Give a planned model memory on this worker's device, in the precision of the forward pass.

    It doesn't communicate.
    """
    dtype = torch.bfloat16 if job.train.precision == "bf16" else torch.float32
    if job.zero.stage < 3:
        return blueprint.whole(group.device, dtype)
    import deepspeed

    config = deepspeed_config(job, group.world_size)
    # With an empty module, it sets up what it does for a module's parameters.
    init = deepspeed.zero.Init(module=torch.nn.Module(), config_dict_or_path=config, dtype=dtype)

    def slice_of(parameter: torch.nn.Parameter, values: Values) -> torch.nn.Parameter:
        # Memory that isn't written to isn't taken from the host, and on a GPU it is freed at once.
        full = torch.empty(parameter.shape, dtype=dtype, device=group.device)
        sliced = torch.nn.Parameter(full, requires_grad=parameter.requires_grad)
        partition = Partition(full.numel(), 0, -(-full.numel() // group.world_size))
        start, numel = partition.range_of(group.rank)
        fill(full.view(-1)[start : start + numel], values, start)
        init._convert_to_deepspeed_param(sliced)
        sliced.partition()  # type: ignore[attr-defined]
        return sliced

    model = blueprint.realized(slice_of)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(group.device)
    return model


@contextmanager
def freed_blocks_returned() -> Iterator[None]:
    """Return freed blocks of a megabyte or more to the system at once, within the block.

    DeepSpeed gathers every trained parameter once while it starts. On a host, glibc keeps freed blocks for
    the next request, but small ones settle between them: now and then the whole model stayed in memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    mallopt(_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        # The values that glibc reaches by itself as long as nobody sets them: training reuses its blocks.
        mallopt(_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(_TRIM_THRESHOLD, 64 * 2**20)
