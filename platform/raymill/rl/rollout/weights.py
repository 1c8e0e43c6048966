"""Weights on their way from the policy to those who sample: in buckets, with a digest of what is sent.

Both ends go through one tensor at a time, so a policy whose parameters lie scattered over ranks (ZeRO-3)
is gathered parameter by parameter, and adapters are merged matrix by matrix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raymill.durable import sha256_json
from raymill.rl.rollout.failure import RolloutError

BUCKET_BYTES = 256 * 2**20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

NamedTensors = Iterable[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Bucket:
    """Whole tensors of one dtype, their bytes one after the other."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: str  # as torch spells it: bfloat16
    data: NDArray[np.uint8]

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Copies: `data` may be memory that is shared with other processes."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            tensor = torch.empty(shape, dtype=dtype)
            _bytes(tensor)[:] = self.data[start : start + tensor.nbytes]
            start += tensor.nbytes
            yield name, tensor


def held_weights(model: Any) -> dict[str, torch.Tensor]:
    """Name → tensor of all that a model's file would hold; tied weights once, by their first name."""
    stored = model.state_dict(keep_vars=True)
    held = {name: value for name, value in model.named_parameters() if name in stored}
    return held | {name: value for name, value in model.named_buffers() if name in stored}


def converted(weights: NamedTensors, dtype: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Floating-point tensors in `dtype` ("fp32", "bf16"), all on the CPU."""
    for name, tensor in weights:
        to = DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype
        yield name, tensor.detach().to("cpu", to)


def buckets(weights: NamedTensors, bucket_bytes: int = BUCKET_BYTES) -> Iterator[Bucket]:
    """Tensors on the CPU packed in their order, up to `bucket_bytes`; a larger tensor is alone.

    Raises:
        ValueError: a name occurs twice.
    """
    seen: set[str] = set()
    held: list[tuple[str, torch.Tensor]] = []
    filled = 0
    for name, tensor in weights:
        if name in seen:
            raise ValueError(f"the weight {name} was given twice; tied weights are sent once")
        seen.add(name)
        if held and (filled + tensor.nbytes > bucket_bytes or tensor.dtype != held[0][1].dtype):
            yield _packed(held)
            held, filled = [], 0
        held.append((name, tensor))
        filled += tensor.nbytes
    if held:
        yield _packed(held)


def _packed(held: list[tuple[str, torch.Tensor]]) -> Bucket:
    return Bucket(
        names=tuple(name for name, _ in held),
        shapes=tuple(tuple(tensor.shape) for _, tensor in held),
        dtype=_spelled(held[0][1].dtype),
        data=np.concatenate([_bytes(tensor) for _, tensor in held]),
    )


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    flat: NDArray[np.uint8] = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return flat


def _spelled(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Digest:
    """sha256 over names, shapes, dtypes and bytes, in whatever order the tensors come."""

    def __init__(self) -> None:
        self.bytes = 0
        self._by_name: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Count in one tensor on the CPU."""
        one = hashlib.sha256(f"{_spelled(tensor.dtype)} {list(tensor.shape)}\n".encode())
        one.update(_bytes(tensor).data)
        self._by_name[name] = one.hexdigest()
        self.bytes += tensor.nbytes

    def passing(self, weights: NamedTensors) -> Iterator[tuple[str, torch.Tensor]]:
        """The same tensors, each counted in as it passes."""
        for name, tensor in weights:
            self.add(name, tensor)
            yield name, tensor

    def hexdigest(self) -> str:
        """Of everything so far."""
        return sha256_json(self._by_name)


def weights_digest(weights: NamedTensors) -> str:
    """What both ends of a transfer must agree on; tensors of one device after the other."""
    digest = Digest()
    for name, tensor in weights:
        digest.add(name, tensor.detach().cpu())
    return digest.hexdigest()


def fill(targets: Mapping[str, torch.Tensor], received: Iterable[Bucket]) -> None:
    """Copy buckets into the tensors of a model.

    Raises:
        RolloutError: see `unpacked`.
    """
    with torch.no_grad():
        for name, tensor in unpacked(received, targets):
            targets[name].copy_(tensor)


def unpacked(
    received: Iterable[Bucket], targets: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The buckets' tensors, each held against the one that it is for.

    Raises:
        RolloutError: a tensor is unknown, comes twice, or is of another shape or dtype; at the end: some
            are missing.
    """
    due = dict(targets)
    for bucket in received:
        for name, tensor in bucket.tensors():
            target = due.pop(name, None)
            if target is None:
                raise RolloutError(
                    f"the policy sent {name}, which the sampling model hasn't or was given already: its "
                    f"weights are called {next(iter(targets))}, …; adapters are merged before they are sent"
                )
            if (target.shape, target.dtype) != (tensor.shape, tensor.dtype):
                raise RolloutError(
                    f"the policy sent {name} as {_spelled(tensor.dtype)} {list(tensor.shape)}, the "
                    f"sampling model has {_spelled(target.dtype)} {list(target.shape)}; build both "
                    "from one configuration, and gather partitioned weights before they are sent"
                )
            yield name, tensor
    if due:
        raise RolloutError(
            f"the policy sent {len(targets) - len(due)} of {len(targets)} weights; the first "
            f"that is missing is {next(iter(due))}"
        )
