"""Steps and accumulation, derived from what is configured; validation has made sure they are whole."""

from __future__ import annotations

from raymill.schema.jobs import DpoJob, RewardJob, RlhfJob, TrainJob


def total_steps(job: TrainJob) -> int:
    """Optimizer steps of the whole run; tokens are rounded up to whole global batches."""
    if job.train.steps is not None:
        return job.train.steps
    assert job.train.tokens is not None  # validation admits exactly one of the two
    return -(-job.train.tokens // step_tokens(job))


def step_tokens(job: TrainJob) -> int:
    """Predictions of a step whose rows are full, over all workers: what `train.tokens` is divided by."""
    return step_rows(job) * forward_length(job)


def step_rows(job: TrainJob) -> int:
    """Sequences that a step passes through the model, over all workers: both of a pair, and each answer with
    its prompt."""
    answers = job.rollout.group if isinstance(job, RlhfJob) else 1
    return passed_rows(job, job.train.global_batch * answers)


def rows_per_update(job: TrainJob) -> int:
    """Rows of one optimizer update, over all workers: a step's, but where answers are sampled for its
    prompts and learned from in minibatches."""
    if not isinstance(job, RlhfJob):
        return job.train.global_batch
    return job.train.global_batch * job.rollout.group // max(1, job.algorithm.minibatches)


def update_unit(job: TrainJob) -> str:
    """Name what an update's rows are."""
    if isinstance(job, RlhfJob):
        return "answers"
    return "pairs" if isinstance(job, RewardJob | DpoJob) else "rows"


def forward_length(job: TrainJob) -> int:
    """Predictions of one row that a forward pass sees: an answer comes after its prompt."""
    if isinstance(job, RlhfJob):
        return job.data.sequence_length + job.rollout.max_new_tokens
    return job.data.sequence_length


def max_sequence_tokens(job: RlhfJob) -> int:
    """Of a prompt, whose row holds one token more than it has predictions, with its answer."""
    return job.data.sequence_length + 1 + job.rollout.max_new_tokens


def passed_rows(job: TrainJob, rows: int) -> int:
    """Sequences that so many samples (or a micro-batch of rows) become: two of a pair."""
    return rows * (2 if isinstance(job, RewardJob | DpoJob) else 1)


def accumulation_steps(job: TrainJob, world_size: int) -> int:
    """Micro-batches a rank and update: rows / (world size x micro-batch), exact by validation."""
    return rows_per_update(job) // (world_size * job.train.micro_batch)


def allowed_workers(job: TrainJob) -> list[int]:
    """World sizes within `run.workers` that the batch can be divided among, from the least up."""
    sizes = range(max(1, job.run.least), job.run.most + 1)
    prompts = job.algorithm.minibatches if isinstance(job, RlhfJob) else 1
    return [
        size for size in sizes
        if rows_per_update(job) % (size * job.train.micro_batch) == 0
        and job.train.global_batch % (size * prompts) == 0
    ]  # fmt: skip
