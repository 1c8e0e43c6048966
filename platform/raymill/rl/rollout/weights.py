"""Transfer of weights from the policy to the sampling engines: in buckets, verified by a digest.

Both ends handle one tensor at a time, so that a policy whose parameters are partitioned over ranks (ZeRO-3) is
gathered parameter by parameter, and adapters are merged matrix by matrix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raymill.durable import sha256_json
from raymill.rl.rollout.engine import RolloutError

BUCKET_BYTES = 256 * 2**20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

NamedTensors = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class TensorBucket:
    """Whole tensors of one dtype, their bytes concatenated."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    # Name of the dtype in torch, such as bfloat16.
    dtype: str
    data: NDArray[np.uint8]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield copies of the tensors; copies, because `data` may be memory shared with other processes."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            tensor = torch.empty(shape, dtype=dtype)
            _bytes(tensor)[:] = self.data[start : start + tensor.nbytes]
            start += tensor.nbytes
            yield name, tensor


def saved_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return name → tensor of all weights that a model's file holds; tied weights once, by their first name."""
    saved = model.state_dict(keep_vars=True)
    parameters = {name: value for name, value in model.named_parameters() if name in saved}
    return parameters | {name: value for name, value in model.named_buffers() if name in saved}


def converted(weights: NamedTensors, dtype: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors on the CPU, those of floating point in `dtype` ("fp32", "bf16")."""
    for name, tensor in weights:
        to = DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype
        yield name, tensor.detach().to("cpu", to)


def buckets(weights: NamedTensors, bucket_bytes: int = BUCKET_BYTES) -> Iterator[TensorBucket]:
    """Pack tensors on the CPU, in their order, into buckets of up to `bucket_bytes`; a larger tensor is alone.

    Raises:
        ValueError: a name occurs twice.
    """
    seen: set[str] = set()
    packed: list[tuple[str, torch.Tensor]] = []
    packed_bytes = 0
    for name, tensor in weights:
        if name in seen:
            raise ValueError(f"the weight {name} was passed twice; tied weights are sent once")
        seen.add(name)
        full = packed_bytes + tensor.nbytes > bucket_bytes
        if packed and (full or tensor.dtype != packed[0][1].dtype):
            yield _bucket(packed)
            packed, packed_bytes = [], 0
        packed.append((name, tensor))
        packed_bytes += tensor.nbytes
    if packed:
        yield _bucket(packed)


def _bucket(tensors: list[tuple[str, torch.Tensor]]) -> TensorBucket:
    return TensorBucket(
        names=tuple(name for name, _ in tensors),
        shapes=tuple(tuple(tensor.shape) for _, tensor in tensors),
        dtype=_dtype_name(tensors[0][1].dtype),
        data=np.concatenate([_bytes(tensor) for _, tensor in tensors]),
    )


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    flat: NDArray[np.uint8] = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return flat


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Digest:
    """sha256 over names, shapes, dtypes and bytes, independent of the order of the tensors."""

    def __init__(self) -> None:
        self.bytes = 0
        self._by_name: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor on the CPU."""
        digest = hashlib.sha256(f"{_dtype_name(tensor.dtype)} {list(tensor.shape)}\n".encode())
        digest.update(_bytes(tensor).data)
        self._by_name[name] = digest.hexdigest()
        self.bytes += tensor.nbytes

    def passing(self, weights: NamedTensors) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the same tensors, adding each."""
        for name, tensor in weights:
            self.add(name, tensor)
            yield name, tensor

    def hexdigest(self) -> str:
        """Return the digest of all tensors added so far."""
        return sha256_json(self._by_name)


def weights_digest(weights: NamedTensors) -> str:
    """Return the digest on which both ends of a transfer must agree; tensors may be on any device."""
    digest = Digest()
    for name, tensor in weights:
        digest.add(name, tensor.detach().cpu())
    return digest.hexdigest()


def copy_into(targets: Mapping[str, torch.Tensor], received: Iterable[TensorBucket]) -> None:
    """Copy buckets into the tensors of a model.

    Raises:
        RolloutError: see `checked_tensors`.
    """
    with torch.no_grad():
        for name, tensor in checked_tensors(received, targets):
            targets[name].copy_(tensor)


def checked_tensors(
    received: Iterable[TensorBucket], targets: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the buckets' tensors, each compared with the target of its name.

    Raises:
        RolloutError: a tensor is unknown, comes twice, or has another shape or dtype; at the end: some are
            missing.
    """
    missing = dict(targets)
    for bucket in received:
        for name, tensor in bucket.tensors():
            target = missing.pop(name, None)
            if target is None:
                raise RolloutError(
                    f"the policy sent {name}, which the sampling model doesn't have or has already: its "
                    f"weights are called {next(iter(targets))}, …; adapters are merged before they are sent"
                )
            if (target.shape, target.dtype) != (tensor.shape, tensor.dtype):
                raise RolloutError(
                    f"the policy sent {name} as {_dtype_name(tensor.dtype)} {list(tensor.shape)}, the "
                    f"sampling model has {_dtype_name(target.dtype)} {list(target.shape)}; build both "
                    "from one configuration, and gather partitioned weights before they are sent"
                )
            yield name, tensor
    if missing:
        raise RolloutError(
            f"the policy sent {len(targets) - len(missing)} of {len(targets)} weights; the first "
            f"missing one is {next(iter(missing))}"
        )
