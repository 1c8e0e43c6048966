"""What this machine's matrix multiplication really reaches, so that a CPU run has a yardstick too."""

from __future__ import annotations

import time

import torch


def measured_peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Best rate of square matrix products over `seconds`, in FLOP/s of this process."""
    size = 1024 if device.type == "cpu" else 8192
    left = torch.randn(size, size, device=device, dtype=dtype)
    right = torch.randn(size, size, device=device, dtype=dtype)
    out = torch.empty_like(left)
    best = 0.0
    deadline = time.perf_counter() + seconds
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
