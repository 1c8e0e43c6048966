"""Check that a worker's plan fits the known memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from raymill.schema.jobs import TrainJob
from raymill.schema.sections import ArchConfig

if TYPE_CHECKING:
    from raymill.plan.memory import Memory

GIB = 2**30


def memory_problems(job: TrainJob, arch: ArchConfig, vocab_size: int) -> list[str]:
    """Refuse a plan whose workers need more memory than is known to be there."""
    return list(_memory_problems(job, arch, vocab_size))


def _memory_problems(job: TrainJob, arch: ArchConfig, vocab_size: int) -> Iterator[str]:
    memory = _planned(job, arch, vocab_size)
    device, host = job.cluster.device_memory_gib, job.cluster.host_memory_gib
    if device is not None and memory.device > device * GIB:
        yield (
            f"cluster.device_memory_gib={device:g}: one worker needs about "
            f"{memory.device / GIB:.1f} GiB (state {memory.state / GIB:.1f}, activations "
            f"{memory.activations / GIB:.1f}, logits {memory.logits / GIB:.1f}); "
            f"{_advice(job, arch, vocab_size, device * GIB)}"
        )
    if host is not None and memory.host > host * GIB:
        yield (
            f"cluster.host_memory_gib={host:g}: the copy that checkpoints are written from, with what is "
            f"offloaded, needs about {memory.host / GIB:.1f} GiB of host memory for each worker of a node"
        )


def _planned(job: TrainJob, arch: ArchConfig, vocab_size: int) -> Memory:
    from raymill.plan.memory import job_memory

    # The fewer workers there are, the more each of them holds.
    return job_memory(job, arch, vocab_size, job.run.least)


def _advice(job: TrainJob, arch: ArchConfig, vocab_size: int, limit: float) -> str:
    """Name the smallest change that makes the plan fit: one, or else all, on as few workers as possible."""
    from raymill.plan.batch import rows_per_update

    changes = {
        "train.micro_batch=1": replace(job, train=replace(job.train, micro_batch=1)),
        "train.activation_checkpointing=true": replace(
            job, train=replace(job.train, activation_checkpointing=True)
        ),
        "zero.stage=3": replace(job, zero=replace(job.zero, stage=3)),
    }
    fitting = [
        k for k, other in changes.items() if _planned(other, arch, vocab_size).device <= limit
    ]
    if fitting:
        return f"it fits with {' or '.join(fitting)}"
    least = replace(
        job,
        train=replace(job.train, micro_batch=1, activation_checkpointing=True),
        zero=replace(job.zero, stage=3),
    )
    together = " ".join(changes)
    rows = rows_per_update(job)
    for workers in [n for n in range(max(job.run.least, 1), rows + 1) if rows % n == 0]:
        other = replace(least, run=replace(least.run, workers=str(workers)))
        if _planned(other, arch, vocab_size).device <= limit:
            more = "" if workers == job.run.least else f" run.workers={workers}"
            return f"it fits with {together}{more}"
    return f"it doesn't fit with {together} on {rows} workers, one for each row of an update"
