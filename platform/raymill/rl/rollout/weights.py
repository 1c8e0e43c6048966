"""Transfer of weights from the policy to the sampling engines: in buckets, verified by a digest.

Both ends handle one tensor at a time, so that a policy whose parameters are partitioned over ranks (ZeRO-3) is
gathered parameter by parameter, and adapters are merged matrix by matrix.

The digest answers one question at every sync: does the engine hold the bits that the policy sent? It is no
protection against forgery. So tensors enter it by a multilinear hash of all their bits, which is computed in
parallel on the device that holds the tensor; sha256 is serial, and would take minutes for 70 billion
parameters, at both ends of every step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from raymill.data.store.hashing import mix
from raymill.durable import sha256_json
from raymill.rl.rollout.engine import RolloutError

BUCKET_BYTES = 256 * 2**20
# Words of 4 bytes that are hashed with one set of keys; and such sets at once, where temporary memory is cheap.
HASH_WORDS = 1 << 16
_HASHED_AT_ONCE = {"cpu": 1, "cuda": 64}
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
    """Yield the tensors, those of floating point in `dtype` ("fp32", "bf16")."""
    for name, tensor in weights:
        to = DTYPES[dtype] if tensor.is_floating_point() else tensor.dtype
        yield name, tensor.detach().to(to)


def buckets(weights: NamedTensors, bucket_bytes: int = BUCKET_BYTES) -> Iterator[TensorBucket]:
    """Pack tensors, in their order, into buckets of up to `bucket_bytes` on the host; a larger tensor is alone.

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
        packed.append((name, tensor.cpu()))
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
    """Digest of names, shapes, dtypes and bits, independent of the order of the tensors."""

    def __init__(self) -> None:
        self.bytes = 0
        self._by_name: dict[str, str] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Add a tensor on any device."""
        described = f"{_dtype_name(tensor.dtype)} {list(tensor.shape)} {bits_hash(tensor)}"
        self._by_name[name] = hashlib.sha256(described.encode()).hexdigest()
        self.bytes += tensor.nbytes

    def passing(self, weights: NamedTensors) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the same tensors, adding each."""
        for name, tensor in weights:
            self.add(name, tensor)
            yield name, tensor

    def hexdigest(self) -> str:
        """Return the digest of all tensors added so far."""
        return sha256_json(self._by_name)


def bits_hash(tensor: torch.Tensor) -> int:
    """Return a 64-bit hash of a tensor's bits, the same on every device.

    Word i of 4 bytes is multiplied by an odd key of 64 bits, and the products are added modulo 2^64; so are the
    sums of stretches of `HASH_WORDS` words (multilinear hashing, Lemire & Kaser 2014). Other bits have the same
    hash with a probability of about 2^-32.
    """
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    # Words must be aligned and complete.
    if flat.storage_offset() % 4 or flat.data_ptr() % 4 or len(flat) % 4:
        flat = torch.cat([flat, flat.new_zeros(-len(flat) % 4)])
    words = flat.view(torch.int32)
    keys, stretch_keys = _keys(words.device)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    whole = len(words) // HASH_WORDS
    at_once = _HASHED_AT_ONCE[words.device.type]
    for first in range(0, whole, at_once):
        last = min(first + at_once, whole)
        part = words[first * HASH_WORDS : last * HASH_WORDS].view(-1, HASH_WORDS)
        numbers = torch.arange(first, last, device=words.device) % HASH_WORDS
        total += ((part * keys).sum(dim=1) * stretch_keys[numbers]).sum()
    rest = words[whole * HASH_WORDS :]
    total += (rest * keys[: len(rest)]).sum() * stretch_keys[whole % HASH_WORDS]
    return int(total)


@lru_cache(maxsize=4)
def _keys(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys of words, and those of stretches of words."""
    keys = mix(np.arange(2 * HASH_WORDS, dtype=np.uint64)) | np.uint64(1)
    on_device = torch.from_numpy(keys.view(np.int64)).to(device)
    return on_device[:HASH_WORDS], on_device[HASH_WORDS:]


def weights_digest(weights: NamedTensors) -> str:
    """Return the digest on which both ends of a transfer must agree; tensors may be on any device."""
    digest = Digest()
    for name, tensor in weights:
        digest.add(name, tensor)
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
