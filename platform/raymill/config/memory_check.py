"""Whether a worker's plan fits the memory that is known."""

from __future__ import annotations

from collections.abc import Iterator

from raymill.config.schema import ArchConfig, DpoJob, RlhfJob, TrainJob

GIB = 2**30


def memory_problems(job: TrainJob, arch: ArchConfig, vocab_size: int) -> list[str]:
    """Whether one worker's plan fits the memory that is known; nothing, if it does."""
    return list(_memory_problems(job, arch, vocab_size))


def _memory_problems(job: TrainJob, arch: ArchConfig, vocab_size: int) -> Iterator[str]:
    from raymill.plan.batch import passed_length, passed_rows
    from raymill.plan.memory import worker_memory

    memory = worker_memory(
        arch,
        vocab_size,
        stage=job.zero.stage,
        workers=job.run.least,  # which have the most to hold each
        precision=job.train.precision,
        micro_batch=passed_rows(job, job.train.micro_batch),
        sequence_length=passed_length(job),
        recompute=job.train.activation_checkpointing,
        offload_optimizer=job.zero.offload_optimizer,
        offload_params=job.zero.offload_params,
        optimizer_name=job.optim.name,
        bucket_elements=job.zero.bucket_elements,
        fp32_head=isinstance(job, DpoJob | RlhfJob),
    )
    device, host = job.cluster.device_memory_gib, job.cluster.host_memory_gib
    if device is not None and memory.device > device * GIB:
        yield (
            f"cluster.device_memory_gib={device:g}: one worker needs about "
            f"{memory.device / GIB:.1f} GiB (state {memory.state / GIB:.1f}, activations "
            f"{memory.activations / GIB:.1f}, logits {memory.logits / GIB:.1f}); lower "
            "train.micro_batch, raise zero.stage or run.workers, or set "
            "train.activation_checkpointing=true"
        )
    if host is not None and memory.host > host * GIB:
        yield (
            f"cluster.host_memory_gib={host:g}: the copy that checkpoints are written from, with what is "
            f"offloaded, needs about {memory.host / GIB:.1f} GiB of host memory for each worker of a node"
        )
