"""The device a worker computes on, and the process group that DeepSpeed and Ray Train share."""

from __future__ import annotations

import os

import torch


def choose_device(gpu: bool) -> torch.device:
    """This worker's device."""
    if not gpu:
        return torch.device("cpu")
    device = torch.device(
        "cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
    )
    torch.cuda.set_device(device)
    return device


def join_deepspeed(gpu: bool) -> None:
    """Let DeepSpeed use the process group that Ray Train made."""
    import deepspeed
    import deepspeed.ops

    # The op is an inference collective; building it would cost each machine 50 s and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if gpu else "gloo", auto_mpi_discovery=False, dist_init_required=None
    )
