"""Whether a worker's plan fits the memory that is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from raymill.schema.jobs import ArchConfig, TrainJob

if TYPE_CHECKING:
    from raymill.plan.memory import Memory

GIB = 2**30


def memory_problems(job: TrainJob, arch: ArchConfig, vocab_size: int) -> list[str]:
    """Whether one worker's plan fits the memory that is known; nothing, if it does."""
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
    from raymill.plan.memory import worker_memory

    return worker_memory(
        arch,
        vocab_size,
        stage=job.zero.stage,
        workers=job.run.least,  # which have the most to hold each
        precision=job.train.precision,
        micro_batch=job.train.micro_batch * job.sequences_per_row,
        sequence_length=job.forward_length,
        recompute=job.train.activation_checkpointing,
        offload_optimizer=job.zero.offload_optimizer,
        offload_params=job.zero.offload_params,
        optimizer_name=job.optim.name,
        bucket_elements=job.zero.bucket_elements,
        fp32_head=job.fp32_head,
    )


def _advice(job: TrainJob, arch: ArchConfig, vocab_size: int, room: float) -> str:
    """The least that makes the plan fit: one change, or else all of them, on more and more workers."""
    from raymill.plan.batch import rows_per_update

    changes = {
        "train.micro_batch=1": replace(job, train=replace(job.train, micro_batch=1)),
        "train.activation_checkpointing=true": replace(
            job, train=replace(job.train, activation_checkpointing=True)
        ),
        "zero.stage=3": replace(job, zero=replace(job.zero, stage=3)),
    }
    fitting = [
        k for k, other in changes.items() if _planned(other, arch, vocab_size).device <= room
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
        if _planned(other, arch, vocab_size).device <= room:
            more = "" if workers == job.run.least else f" run.workers={workers}"
            return f"it fits with {together}{more}"
    return f"it doesn't fit with {together} on {rows} workers, one for each row of an update"
