"""Processes of a group, without Ray."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from typing import Any

from raymill.cluster.local_ray import FORKING


def run_ranks(
    work: Callable[..., None], arguments: tuple[Any, ...], world: int, gpu: bool = False
) -> None:
    """Run `work(rank, *arguments)` in `world` processes to the end; an error in one of them is raised here.

    The processes are forked from one that has the imports they need, which take seconds; with a GPU they are
    spawned.
    """
    import torch.multiprocessing as mp

    if not gpu:
        multiprocessing.set_forkserver_preload(["engine.preloaded"])
        os.environ.update(FORKING)
    mp.start_processes(work, arguments, nprocs=world, start_method="spawn" if gpu else "forkserver")
