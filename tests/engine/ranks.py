"""Processes of a group, without Ray."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process with threads isn't forked


def run_ranks(
    work: Callable[..., None], arguments: tuple[Any, ...], world: int, gpu: bool = False
) -> None:
    """`work(rank, *arguments)` in `world` processes at once, to their end; an error in one is raised here.

    They are forked from a process that has imported what they need, which takes seconds; with a GPU they are
    started anew.
    """
    import torch.multiprocessing as mp

    if not gpu:
        multiprocessing.set_forkserver_preload(["engine.preloaded"])
        os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    mp.start_processes(work, arguments, nprocs=world, start_method="spawn" if gpu else "forkserver")
