"""Steps and accumulation, derived from what is configured; validation has made sure they are whole."""

from __future__ import annotations

from raymill.config.schema import TrainJob


def total_steps(job: TrainJob) -> int:
    """Optimizer steps of the whole run; tokens are rounded up to whole global batches."""
    if job.train.steps is not None:
        return job.train.steps
    assert job.train.tokens is not None  # validation admits exactly one of the two
    return -(-job.train.tokens // (job.train.global_batch * job.data.sequence_length))


def accumulation_steps(job: TrainJob, world_size: int) -> int:
    """Micro-batches a rank and step: global batch / (world size x micro-batch), exact by validation."""
    return job.train.global_batch // (world_size * job.train.micro_batch)
