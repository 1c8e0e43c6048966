"""Steps and accumulation, derived from what is configured; validation has made sure they are whole."""

from __future__ import annotations

from raymill.schema.jobs import TrainJob


def total_steps(job: TrainJob) -> int:
    """Optimizer steps of the whole run; tokens are rounded up to whole global batches."""
    if job.train.steps is not None:
        return job.train.steps
    assert job.train.tokens is not None  # validation admits exactly one of the two
    return -(-job.train.tokens // step_tokens(job))


def step_tokens(job: TrainJob) -> int:
    """Predictions of a step whose rows are full, over all workers: what `train.tokens` is divided by."""
    return step_rows(job) * job.forward_length


def step_rows(job: TrainJob) -> int:
    """Sequences that a step passes through the model, over all workers: both of a pair, and each answer with
    its prompt."""
    return job.train.global_batch * job.rows_per_sample * job.sequences_per_row


def rows_per_update(job: TrainJob) -> int:
    """Rows of one optimizer update, over all workers: a step's, but where answers are sampled for its
    prompts and learned from in minibatches."""
    return job.train.global_batch * job.rows_per_sample // job.updates_per_step


def accumulation_steps(job: TrainJob, world_size: int) -> int:
    """Micro-batches a rank and update: rows / (world size x micro-batch), exact by validation."""
    return rows_per_update(job) // (world_size * job.train.micro_batch)


def allowed_workers(job: TrainJob) -> list[int]:
    """World sizes within `run.workers` that the batch can be divided among, from the least up."""
    sizes = range(max(1, job.run.least), job.run.most + 1)
    return [
        size for size in sizes
        if rows_per_update(job) % (size * job.train.micro_batch) == 0
        and job.train.global_batch % (size * job.updates_per_step) == 0
    ]  # fmt: skip
