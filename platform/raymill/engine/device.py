"""Device of a worker, the process group that DeepSpeed shares with Ray Train, and a device benchmark."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def choose_device(gpu: bool, deterministic: bool = True) -> torch.device:
    """Return this worker's device; `deterministic` makes equal inputs give equal bits on it."""
    if not gpu:
        return torch.device("cpu")
    if deterministic:
        _use_deterministic_kernels()
    device = torch.device(
        "cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    )
    # Libraries that allocate on the current device, such as NCCL, must not all use the first GPU.
    torch.cuda.set_device(device)
    return device


def _use_deterministic_kernels() -> None:
    """Restrict a GPU to deterministic kernels.

    Its fast kernels, such as attention's backward pass, add up in whichever order their threads finish; a CPU's
    kernels are deterministic already. See https://pytorch.org/docs/stable/notes/randomness.html
    """
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # Filling costs time and protects only code that reads uninitialized memory, which ours doesn't.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def join_deepspeed(gpu: bool) -> None:
    """Let DeepSpeed use the process group that Ray Train created."""
    # Otherwise DeepSpeed takes any GPU that it sees.
    os.environ["DS_ACCELERATOR"] = "cuda" if gpu else "cpu"
    # DeepSpeed imports MLflow for its tuner, which takes 3 s.
    with _hidden_module("mlflow"):
        import deepspeed
        import deepspeed.ops

    # The op is an inference collective; building it would cost each machine 50 s and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if gpu else "gloo", auto_mpi_discovery=False, dist_init_required=None
    )


@contextmanager
def _hidden_module(module: str) -> Iterator[None]:
    """Make imports of a module fail within the block, unless it is loaded already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def device_memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory of this worker's tensors on its GPU so far, in GiB; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {"perf/device_peak_gib": torch.cuda.max_memory_allocated(device) / 2**30}


def benchmark_peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Return the best rate of square matrix products over `seconds`, in FLOP/s of this process.

    It is the denominator of MFU where no peak is configured, on a CPU for example.
    """
    size = 1024 if device.type == "cpu" else 8192
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(left)
    best = 0.0
    deadline = time.perf_counter() + seconds
    # At least one product is timed, however slow the device.
    while best == 0.0 or time.perf_counter() < deadline:
        _synchronize(device)
        started = time.perf_counter()
        torch.mm(left, right, out=out)
        _synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
