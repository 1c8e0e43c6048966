"""Check that a job's workers, and the driver's export, fit the known memory of devices and nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from raymill.schema.jobs import ParentJob, TrainJob
from raymill.schema.sections import ArchConfig

if TYPE_CHECKING:
    from raymill.plan.memory import Memory
    from raymill.plan.node import NodeMemory

GIB = 2**30
ADAPTER_RANK = 16  # of the adapters that the advice names


def memory_problems(job: TrainJob, arch: ArchConfig, vocab_size: int) -> list[str]:
    """Refuse a plan that needs more memory than is known to be there; name changes with which it fits."""
    problems = [*_shortages(job, arch, vocab_size)]
    if problems:
        problems[-1] += f"; {_advice(job, arch, vocab_size)}"
    return problems


def _shortages(job: TrainJob, arch: ArchConfig, vocab_size: int) -> Iterator[str]:
    device, host = job.cluster.device_memory_gib, job.cluster.host_memory_gib
    if device is None and host is None:
        return
    memory, node = _planned(job, arch, vocab_size)
    if device is not None and memory.device > device * GIB:
        yield (
            f"cluster.device_memory_gib={device:g}: one worker needs about "
            f"{memory.device / GIB:.1f} GiB (start {memory.start / GIB:.1f}; step {memory.step / GIB:.1f}: "
            f"state {memory.state / GIB:.1f}, buffers {memory.buffers / GIB:.1f}, activations "
            f"{memory.activations / GIB:.1f}, logits {memory.logits / GIB:.1f}), and its node "
            f"{node.total / GIB:.1f} GiB of host memory"
        )
    if host is not None and node.total > host * GIB:
        yield (
            f"cluster.host_memory_gib={host:g}: a node needs about {node.total / GIB:.1f} GiB of host memory: "
            f"{node.workers} workers of {node.each / GIB:.1f} GiB (copy for checkpoints "
            f"{memory.copy / GIB:.1f}, offloaded {memory.offloaded / GIB:.1f}"
            f"{'' if job.cluster.gpu else f', start or step {memory.device / GIB:.1f}'}), or the driver's "
            f"export of {node.export / GIB:.1f} GiB"
        )


def _planned(job: TrainJob, arch: ArchConfig, vocab_size: int) -> tuple[Memory, NodeMemory]:
    from raymill.plan.memory import job_memory
    from raymill.plan.node import node_memory

    # The fewer workers there are, the more each of them holds.
    workers = max(1, job.run.least)
    return (
        job_memory(job, arch, vocab_size, workers),
        node_memory(job, arch, vocab_size, workers),
    )


def _fits(job: TrainJob, arch: ArchConfig, vocab_size: int) -> bool:
    return not any(_shortages(job, arch, vocab_size))


def _advice(job: TrainJob, arch: ArchConfig, vocab_size: int) -> str:
    """Name the smallest change that makes the plan fit: one, or else all, on as few workers as possible."""
    fitting = [
        key for key, other in _changes(job).items() if _fits(other, arch, vocab_size)
    ] + _more_workers(job, arch, vocab_size)
    if fitting:
        return f"it fits with {' or '.join(fitting)}"
    least = replace(
        job,
        train=replace(job.train, micro_batch=1, activation_checkpointing=True),
        zero=replace(job.zero, stage=3),
    )
    together = "train.micro_batch=1 train.activation_checkpointing=true zero.stage=3"
    if _fits(least, arch, vocab_size):
        return f"it fits with {together}"
    if more := _more_workers(least, arch, vocab_size):
        return f"it fits with {together} {more[0]}"
    rows = _sizes(least)[-1]
    return f"it doesn't fit with {together} on {rows} workers, one for each row of an update"


def _changes(job: TrainJob) -> dict[str, TrainJob]:
    """Return override → job with this change alone."""
    changes: dict[str, TrainJob] = {
        "train.micro_batch=1": replace(job, train=replace(job.train, micro_batch=1)),
        "train.activation_checkpointing=true": replace(
            job, train=replace(job.train, activation_checkpointing=True)
        ),
        "zero.stage=3": replace(job, zero=replace(job.zero, stage=3)),
    }
    if isinstance(job, ParentJob) and not job.lora.rank and job.optim.name == "adamw":
        key = f"lora.rank={ADAPTER_RANK}"
        changes[key] = replace(job, lora=replace(job.lora, rank=ADAPTER_RANK))
    return changes


def _more_workers(job: TrainJob, arch: ArchConfig, vocab_size: int) -> list[str]:
    """Return the override of the fewest workers that fit, if there are any."""
    for workers in _sizes(job):
        other = replace(job, run=replace(job.run, workers=str(workers)))
        if workers > job.run.least and _fits(other, arch, vocab_size):
            return [f"run.workers={workers}"]
    return []


def _sizes(job: TrainJob) -> Sequence[int]:
    from raymill.plan.batch import allowed_workers, rows_per_update

    most = replace(job.run, workers=f"1..{rows_per_update(job)}")
    return allowed_workers(replace(job, run=most)) or [1]
