"""Checks of a run's batch, its intervals and its safeguards."""

from __future__ import annotations

from collections.abc import Iterator

from raymill.config.ranges import SAFE_NAME, above, at_least, safe_name
from raymill.plan.batch import allowed_workers, rows_per_update, step_tokens
from raymill.schema.jobs import RlhfJob, TrainJob


def run_problems(job: TrainJob) -> Iterator[str]:
    """Yield every contradiction in them."""
    yield from _batch(job)
    yield from _cadence(job)
    yield from _run(job)


def _batch(job: TrainJob) -> Iterator[str]:
    train, run = job.train, job.run
    yield from at_least("train.global_batch", train.global_batch, 1)
    yield from at_least("train.micro_batch", train.micro_batch, 1)
    if not 1 <= run.least <= run.most:
        yield f"run.workers={run.workers}: expected a number of at least 1, or least..most as in 2..8"
    yield from at_least("train.steps", train.steps, 1)
    yield from at_least("train.threads", train.threads, 1)
    if (train.steps is None) == (train.tokens is None):
        yield (
            f"train.steps={train.steps}, train.tokens={train.tokens}: give exactly one of them "
            "(the other null)"
        )
    # The checks below divide by these numbers.
    if min(train.global_batch, train.micro_batch, run.least) < 1:
        return
    rows, workers = rows_per_update(job), run.least
    if run.least < run.most and not allowed_workers(job):
        yield (
            f"run.workers={run.workers}: {rows} {job.row_unit} per update can't be divided among any such "
            f"number of workers in micro-batches of {train.micro_batch}; change train.micro_batch or "
            "train.global_batch"
        )
    elif run.least == run.most and rows % (workers * train.micro_batch):
        per_worker = rows // workers
        divisors = [n for n in range(1, per_worker + 1) if rows % (workers * n) == 0]
        advice = (
            f"micro-batches that fit {workers} workers: {', '.join(map(str, divisors[-5:]))}"
            if divisors
            else f"no micro-batch fits {workers} workers; change run.workers or train.global_batch"
        )
        answers = "" if rows == train.global_batch else f" ({rows} answers per update)"
        yield (
            f"train.global_batch={train.global_batch}{answers}: isn't workers x micro-batch x "
            f"accumulation ({workers} x {train.micro_batch} x a whole number); {advice}"
        )
    if train.tokens is not None and train.tokens < step_tokens(job):
        yield (
            f"train.tokens={train.tokens}: less than one global batch of {step_tokens(job)} tokens"
        )


def _cadence(job: TrainJob) -> Iterator[str]:
    yield from at_least("evaluation.every", job.evaluation.every, 0)
    yield from at_least("evaluation.rows", job.evaluation.rows, 1)
    yield from at_least("evaluation.batch", job.evaluation.batch, 1)
    yield from at_least("checkpoint.every", job.checkpoint.every, 1)
    yield from at_least("checkpoint.keep_last", job.checkpoint.keep_last, 1)
    yield from at_least("checkpoint.keep_every", job.checkpoint.keep_every, 0)


def _run(job: TrainJob) -> Iterator[str]:
    yield from safe_name("run.name", job.run.name)
    yield from above("guard.spike_z", job.guard.spike_z, 0)
    yield from at_least("guard.max_consecutive", job.guard.max_consecutive, 0)
    if isinstance(job, RlhfJob) and job.guard.spike_z is not None:
        yield (
            f"guard.spike_z={job.guard.spike_z}: the loss of reinforcement learning has no level to spike "
            "from; use guard.spike_z=null"
        )
    if isinstance(job, RlhfJob) and job.guard.policy == "rewind":
        yield (
            "guard.policy=rewind: a prompt of reinforcement learning that comes again is answered in other "
            "words; use guard.policy=skip"
        )
    yield from above("watchdog.timeout_s", job.watchdog.timeout_s, 0)
    yield from at_least("run.max_failures", job.run.max_failures, 0)
    if job.run.from_ is not None:
        name, _, step = job.run.from_.partition("@")
        if not SAFE_NAME.fullmatch(name) or not step.isdecimal():
            yield f"run.from={job.run.from_!r}: expected <run name>@<step>, as in base@1000"
