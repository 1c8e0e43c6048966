"""The training loop: one step after the other, the same for every job that trains.

`Loop._train` is the loop itself. What differs between jobs is in the objects that the loop is given: a
`BatchBuilder` turns the samples drawn for a step into batches, each `Learner` is a model with its objective,
and `Evaluator`s measure the first model between steps.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import numpy as np
import torch

from raymill.data.store.manifest import PreparedData
from raymill.data.store.stream import RankStream, StepBatch
from raymill.engine.batches import BatchBuilder, Floats, Ints, RowBatch
from raymill.engine.checkpoints import Checkpoints, Position
from raymill.engine.compilation import CompileTimer
from raymill.engine.device import device_memory
from raymill.engine.divergence import Divergence
from raymill.engine.evaluation import EvalPoint, Evaluator
from raymill.engine.event_log import EventLog
from raymill.engine.failure_note import OtherRankError
from raymill.engine.group import WorkerGroup, raise_together
from raymill.engine.guard import Guard
from raymill.engine.heartbeat import Heartbeat
from raymill.engine.learner import Learner, Phases, Update
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.schedule import learning_rate_factor
from raymill.engine.start import StartPoint
from raymill.errors import RaymillError
from raymill.reading import is_file
from raymill.timeline import mark


@dataclass
class Loop:
    """A run in progress on one rank.

    `step`, `samples` and `tokens`, with the states of the batch builder and the guard, are its whole position.
    """

    resolved: ResolvedRun
    prepared: list[PreparedData]
    start: StartPoint
    learners: list[Learner]  # the model that the job is about, then the critic, if any
    batch_builder: BatchBuilder
    evaluators: list[Evaluator]
    stream: RankStream
    group: WorkerGroup
    event_log: EventLog | None  # on rank 0 only
    heartbeat: Heartbeat
    peak_flops: float  # of all workers together
    flops_per_token: float
    guard: Guard = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    step: int = field(init=False)  # steps completed
    samples: int = field(init=False)
    tokens: int = field(init=False)
    _ahead: StepBatch | None = field(default=None, init=False)  # drawn already, for the next step
    _divergence: Divergence = field(init=False)
    _stragglers: Stragglers = field(init=False)
    _compile_timer: CompileTimer = field(init=False)

    def __post_init__(self) -> None:
        start, group, event_log = self.start, self.group, self.event_log
        self.step, self.samples, self.tokens = start.step, start.samples, start.tokens
        self._compile_timer = CompileTimer(self.heartbeat)
        self._stragglers = Stragglers()
        self.guard = Guard(self.resolved.job.guard)
        self.guard.restore(start.guard)
        self.guard.add_skipped(start.windows)
        self.checkpoints = Checkpoints(
            self.resolved, self.prepared, self.learners, group, event_log, start.consumed,
            start.order_version,
        )  # fmt: skip
        self._divergence = Divergence(
            self.guard, self.resolved, start, self.checkpoints, group, event_log
        )

    def run(self) -> str:
        """Train to the end or until a stop is requested. Return "finished" or "stopped"."""
        compiles = self.resolved.job.train.compile
        try:
            with self._compile_timer.recording() if compiles else nullcontext():
                status = self._train()
        except (RaymillError, OtherRankError):
            self._beat("commit")
            # A checkpoint under way is still committed, unless the ranks that it needs are lost, too.
            with suppress(Exception):
                self.checkpoints.settle(self.step, wait=True)
            self.batch_builder.close()
            raise
        # Not in a `finally`: any other error ends the process at once, and must not wait for lost ranks.
        self.batch_builder.close()
        return status

    def _train(self) -> str:
        job, total, stream = self.resolved.job, self.resolved.total_steps, iter(self.stream)
        first_step = self.step + 1
        # A resumed run has measured the model at its step before.
        if self.step == 0:
            self._evaluate(EvalPoint(0, first=True, last=False))
        mark("first evaluation")

        while self.step < total:
            started, step, phases = time.perf_counter(), self.step + 1, Phases(self._beat)

            # Draw this rank's samples and build batches from them: the rows as they are, or, in RL, answers
            # that are sampled now.
            drawn = self._draw(stream, phases)
            if drawn is None:
                self._commit_before_stop()
                break
            batch, upcoming = drawn
            # Metrics and the watchdog know this phase as "gather".
            phases.enter("gather")
            batches = self.batch_builder.build_step(batch, step, upcoming)
            phases.enter(None)

            # Forward, backward and optimizer, once per update and model. Seeding each step by its number makes
            # dropout depend on the position alone, so there is no generator state to save.
            torch.manual_seed(step_seed(job.run.seed, step, self.group.rank))
            rate_factor = learning_rate_factor(job.schedule, step, total)
            metrics: dict[str, float] = {}
            losses: list[Floats] = []
            for learner in self.learners:
                rate = learner.peak_rate * rate_factor
                updates = [
                    self._update(learner, rows, samples, rate, phases)
                    for rows, samples in zip(batches.updates, batches.samples, strict=True)
                ]
                metrics |= update_metrics(updates, learner.prefix)
                losses = losses or [update.losses for update in updates]
            # A refused loss must not shift the median that later losses are compared with.
            if "train/loss" in metrics and not metrics.get("train/skipped"):
                self.guard.record_loss(metrics["train/loss"])

            self.step = step
            self.samples += job.train.global_batch
            self.tokens += batches.tokens
            metrics |= self.batch_builder.loss_metrics(losses, batch)
            metrics["train/learning_rate"] = self.learners[0].peak_rate * rate_factor
            metrics |= batches.metrics
            self._log_step(metrics, batch, batches.tokens, time.perf_counter() - started, phases)
            if step == first_step:
                mark("first step")

            point = EvalPoint(step, first=False, last=step == total)
            self._evaluate(point)
            if point.due(job.checkpoint.every):
                self._begin_commit()

        self._beat("commit")
        self.checkpoints.settle(self.step, wait=True, last=True)
        return "finished" if self.step == total else "stopped"

    def _draw(
        self, stream: Iterator[StepBatch], phases: Phases
    ) -> tuple[StepBatch, StepBatch | None] | None:
        """Draw the samples of the next step and, where the builder looks ahead, of the one after it.

        Return None, on all ranks, where a stop is requested. An error on any rank, from reading data or from a
        checkpoint that ended meanwhile, is raised on all ranks.
        """
        phases.enter("data")
        batch: StepBatch | None = None
        error: Exception | None = None
        try:
            batch, self._ahead = self._ahead or next(stream), None
            if self.batch_builder.lookahead and self.step + 1 < self.resolved.total_steps:
                self._ahead = next(stream)
        except Exception as raised:  # noqa: BLE001  (raised again once the other ranks know of it)
            error = raised
        phases.enter(None)
        # A checkpoint that has ended is settled here, where all ranks are about to communicate anyway.
        error = error or self.checkpoints.settle(self.step)
        stop_requested = self.group.rank == 0 and is_file(self.resolved.stop_request)
        errors, stops = self.group.sum(error is not None, stop_requested)
        if errors:
            raise_together(self.group, error)
        if stops:
            return None
        assert batch is not None, "without an error, a batch was drawn"
        return batch, self._ahead

    def _update(
        self, learner: Learner, rows: RowBatch, samples: Ints, rate: float, phases: Phases
    ) -> Update:
        """Make one optimizer update of a model, and handle a loss or gradient that is refused."""
        update = learner.update(rows, rate, phases, self.guard.refusal)
        if update.refused is not None:
            # Handling it may wait for a commit, for which the watchdog allows more time.
            self._beat("commit")
            self._divergence.handle(update, learner.prefix, samples, self.step + 1, self.samples)
        elif update.weight:
            self.guard.record_update(learner.prefix)
        return update

    def _evaluate(self, point: EvalPoint) -> None:
        """Measure the first model with every evaluator that is due, and log the metrics."""
        self._beat("evaluate")
        metrics: dict[str, float] = {}
        for evaluator in self.evaluators:
            metrics |= evaluator.measure(self.learners[0].model, self.group, point)
        if metrics and self.event_log is not None:
            self.event_log.write("evaluation", self.step, tokens=self.tokens, **metrics)

    def _begin_commit(self) -> None:
        """Copy the training state; a background thread writes the checkpoint while training continues."""
        self._beat("commit")
        position = Position(self.step, self.samples, self.tokens)
        self.checkpoints.begin(position, self.batch_builder.state(), self.guard.state())

    def _commit_before_stop(self) -> None:
        """Commit this step, unless a checkpoint has it already."""
        self._beat("commit")
        self.checkpoints.settle(self.step, wait=True)
        if self.step > self.start.step and self.checkpoints.committed != self.samples:
            self._begin_commit()

    def _log_step(
        self,
        metrics: Mapping[str, float],
        batch: StepBatch,
        tokens: int,
        seconds: float,
        phases: Phases,
    ) -> None:
        """Log a step's metrics, throughput and phase times, and a digest of the samples it trained on."""
        # Gathered on all ranks, since only they know their own samples and times.
        independent = {phase: phases.seconds[phase] for phase in Stragglers.PHASES}
        ranks = self.group.gather((batch.sample_id, independent))
        if self.event_log is None:
            return
        # Sorted over all ranks, so that the digest is the same for every number of workers.
        ids = np.sort(np.concatenate([samples for samples, _ in ranks]))
        for text in self._stragglers.add(self.step, [seconds for _, seconds in ranks]):
            self.event_log.write("message", self.step, text=text)
        per_second = tokens / seconds
        self.event_log.write(
            "step",
            self.step,
            samples=self.samples,
            tokens=self.tokens,
            sample_ids_sha256=hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
            **{
                **metrics,
                "perf/tokens_per_s": per_second,
                "perf/mfu": per_second * self.flops_per_token / self.peak_flops,
                "perf/step_s": seconds,
                **device_memory(self.group.device),
                **self._compile_timer.metrics(),
                "perf/data_wait_s": phases.seconds["data"],
                **{
                    f"perf/{phase}_s": phases.seconds[phase]
                    for phase in ("gather", "forward", "backward", "optimizer")
                },
            },
        )

    def _beat(self, phase: str) -> None:
        # The step under way, while `self.step` counts the completed ones.
        self.heartbeat.step = self.step + 1
        self.heartbeat.beat(phase)


def update_metrics(updates: Sequence[Update], prefix: str) -> dict[str, float]:
    """Return the means over a step's updates of one model.

    Updates without any weight, which have nothing to learn from, are left out. If all others were refused, loss
    and gradient norm are those of the refused ones.
    """
    # A refused update has metrics of a gradient that was never applied.
    applied = [update for update in updates if update.weight and update.refused is None]
    values: dict[str, list[float]] = defaultdict(list)
    for update in applied:
        for name, value in update.metrics.items():
            values[name].append(value)
    means = {name: sum(entries) / len(entries) for name, entries in values.items()}
    shown = applied or [update for update in updates if update.refused is not None]
    count = max(1, len(shown))
    group = prefix or "train/"
    return {
        f"{group}loss": sum(update.loss for update in shown) / count,
        f"{group}grad_norm": sum(update.norm for update in shown) / count,
        **(
            {} if len(applied) == len(updates) else {f"{group}skipped": len(updates) - len(applied)}
        ),
        **means,
    }


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return a 63-bit seed for one rank's randomness in one step."""
    text = f"raymill/{seed}/{step}/{rank}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


class Stragglers:
    """Finds ranks that are slower than the others, by the time they spend in phases without communication."""

    # The other phases end on all ranks when the slowest rank is done, so their times say nothing about a rank.
    # Under ZeRO-3 the forward pass gathers weights, and shows a straggler less clearly.
    PHASES = ("data", "forward")
    STEPS = 50
    FACTOR = 1.5

    def __init__(self) -> None:
        self._first: int | None = None
        self._totals: list[dict[str, float]] = []

    def add(self, step: int, seconds: Sequence[Mapping[str, float]]) -> list[str]:
        """Add a step's seconds by phase, rank by rank.

        After each `STEPS` steps, return a message for every rank that took more than `FACTOR` times as long as
        the median rank.
        """
        if self._first is None:
            self._first, self._totals = step, [dict.fromkeys(self.PHASES, 0.0) for _ in seconds]
        for total, of_rank in zip(self._totals, seconds, strict=True):
            for phase in self.PHASES:
                total[phase] += of_rank[phase]
        if step - self._first + 1 < self.STEPS:
            return []
        first, totals = self._first, self._totals
        self._first = None
        sums = [sum(total.values()) for total in totals]
        # The lower median, so that of two ranks the slower one can be named.
        median = statistics.median_low(sums)
        return [
            f"rank {rank} was {rank_sum / median:.1f} times as slow as the median rank in steps {first} to "
            f"{step}: "
            + ", ".join(f"{phase} {totals[rank][phase]:.2f} s" for phase in self.PHASES)
            + f", median in all {median:.2f} s"
            for rank, rank_sum in enumerate(sums)
            if rank_sum > self.FACTOR * median
        ]
