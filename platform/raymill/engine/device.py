"""The device a worker computes on, and the process group that DeepSpeed and Ray Train share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def choose_device(gpu: bool, deterministic: bool = True) -> torch.device:
    """This worker's device; `deterministic`: so that it computes the same from the same, bit by bit."""
    if not gpu:
        return torch.device("cpu")
    if deterministic:
        _only_deterministic_kernels()
    device = torch.device(
        "cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    )
    torch.cuda.set_device(device)
    return device


def _only_deterministic_kernels() -> None:
    """A CPU's are; a GPU's fast ones, attention's backward pass among them, add up in whatever order their
    threads come. See https://pytorch.org/docs/stable/notes/randomness.html"""
    if os.environ.get("CUBLAS_WORKSPACE_CONFIG") not in (":4096:8", ":16:8"):
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # It would be filled, so that who reads it reads the same; we don't.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def join_deepspeed(gpu: bool) -> None:
    """Let DeepSpeed use the process group that Ray Train made."""
    os.environ["DS_ACCELERATOR"] = "cuda" if gpu else "cpu"  # or it takes any GPU that it sees
    with _without("mlflow"):  # 3 s of imports, for DeepSpeed's tuner
        import deepspeed
        import deepspeed.ops

    # The op is an inference collective; building it would cost each machine 50 s and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if gpu else "gloo", auto_mpi_discovery=False, dist_init_required=None
    )


@contextmanager
def _without(module: str) -> Iterator[None]:
    """What is imported meanwhile finds a module missing, unless it is loaded already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def device_memory(device: torch.device) -> dict[str, float]:
    """The most that this worker's tensors took of its GPU so far, in GiB; nothing on a CPU."""
    if device.type != "cuda":
        return {}
    return {"perf/device_peak_gib": torch.cuda.max_memory_allocated(device) / 2**30}
