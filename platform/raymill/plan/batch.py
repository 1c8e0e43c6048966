"""Steps, rows and accumulation, derived from the configuration; its checks ensure that divisions are exact."""

from __future__ import annotations

from raymill.schema.jobs import TrainJob


def total_steps(job: TrainJob) -> int:
    """Return the optimizer steps of the whole run; tokens are rounded up to whole global batches."""
    if job.train.steps is not None:
        return job.train.steps
    assert job.train.tokens is not None, "the checks require exactly one of steps and tokens"
    return -(-job.train.tokens // step_tokens(job))


def step_tokens(job: TrainJob) -> int:
    """Return the predictions of a step with full rows, over all workers: the divisor of `train.tokens`."""
    return step_rows(job) * job.forward_length


def step_rows(job: TrainJob) -> int:
    """Return the sequences that a step passes through the model, over all workers.

    A pair counts as two, and each answer counts together with its prompt as one.
    """
    return job.train.global_batch * job.rows_per_sample * job.sequences_per_row


def rows_per_update(job: TrainJob) -> int:
    """Return the rows of one optimizer update, over all workers.

    They are a step's rows, except in RL, where a step's answers are split into minibatches.
    """
    return job.train.global_batch * job.rows_per_sample // job.updates_per_step


def accumulation_steps(job: TrainJob, world_size: int) -> int:
    """Return the micro-batches per rank and update: rows / (world size x micro-batch)."""
    return rows_per_update(job) // (world_size * job.train.micro_batch)


def allowed_workers(job: TrainJob) -> list[int]:
    """Return the world sizes within `run.workers` that divide the batch, in ascending order."""
    sizes = range(max(1, job.run.least), job.run.most + 1)
    # In RL the prompts of every minibatch are divided over the workers, too.
    return [
        size for size in sizes
        if rows_per_update(job) % (size * job.train.micro_batch) == 0
        and job.train.global_batch % (size * job.updates_per_step) == 0
    ]  # fmt: skip
