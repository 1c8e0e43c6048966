"""The training loop: one step after the other, the same for every job that trains.

`Loop._train` is the loop itself. What differs between jobs is in the objects that the loop is given: a
`BatchBuilder` turns the samples drawn for a step into batches, each `Learner` is a model with its objective,
and `Evaluator`s measure the first model between steps.
"""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import numpy as np
import torch

from raymill.data.store.hashing import mix
from raymill.data.store.manifest import PreparedData
from raymill.data.store.stream import RankStream, StepBatch
from raymill.engine.batches import BatchBuilder, Ints, RowBatch, UpdateBatches
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
from raymill.engine.step_sums import StepSums, means
from raymill.engine.stragglers import Stragglers
from raymill.errors import DataError, RaymillError
from raymill.reading import is_file
from raymill.timeline import mark

# Sums of so many ranks' checksums are exact in float64: 2^53 / 2^32.
CHECKSUMS = 2**32


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
    _step_sums: StepSums = field(init=False)
    _compile_timer: CompileTimer = field(init=False)

    def __post_init__(self) -> None:
        start, group, event_log = self.start, self.group, self.event_log
        self.step, self.samples, self.tokens = start.step, start.samples, start.tokens
        self._compile_timer = CompileTimer(self.heartbeat)
        self._stragglers = Stragglers(group)
        self._step_sums = StepSums(group)
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
            weights = self._global_weights(batches)
            phases.enter(None)

            # Forward, backward and optimizer, once per update and model. Seeding each step by its number makes
            # dropout depend on the position alone, so there is no generator state to save.
            torch.manual_seed(step_seed(job.run.seed, step, self.group.rank))
            rate_factor = learning_rate_factor(job.schedule, step, total)
            updates = [
                [
                    self._update(
                        learner, rows, weight, samples, learner.peak_rate * rate_factor, phases
                    )
                    for rows, weight, samples in zip(
                        batches.updates, of_learner, batches.samples, strict=True
                    )
                ]
                for learner, of_learner in zip(self.learners, weights, strict=True)
            ]
            self.step = step
            self.samples += job.train.global_batch
            metrics, tokens = self._metrics(updates, batches, batch)
            self.tokens += tokens
            # A refused loss must not shift the median that later losses are compared with.
            if "train/loss" in metrics and not metrics.get("train/skipped"):
                self.guard.record_loss(metrics["train/loss"])
            metrics["train/learning_rate"] = self.learners[0].peak_rate * rate_factor
            metrics |= batches.metrics
            self._log_step(metrics, tokens, time.perf_counter() - started, phases)
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

    def _global_weights(self, batches: UpdateBatches) -> list[list[float]]:
        """Return the weight over all ranks of every update, learner by learner; collective."""
        flat = iter(
            self.group.sum(
                *(
                    learner.objective.weight(rows)
                    for learner in self.learners
                    for rows in batches.updates
                )
            )
        )
        return [[next(flat) for _ in batches.updates] for _ in self.learners]

    def _update(
        self,
        learner: Learner,
        rows: RowBatch,
        weight: float,
        samples: Ints,
        rate: float,
        phases: Phases,
    ) -> Update:
        """Make one optimizer update of a model, and handle a loss or gradient that is refused."""
        update = learner.update(rows, weight, rate, phases, self.guard.refusal)
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

    def _metrics(
        self, updates: Sequence[Sequence[Update]], batches: UpdateBatches, batch: StepBatch
    ) -> tuple[dict[str, float], int]:
        """Return the metrics of a step's updates over all ranks, and the step's tokens; collective.

        Raises:
            DataError: on rank 0; the ranks together have drawn other samples than the order has for this step.
        """
        losses = [update.losses for update in updates[0]]
        builder_sums = {**batches.sums, **self.batch_builder.loss_sums(losses, batch)}
        numbers: dict[str, Sequence[float]] = {
            "tokens": [batches.tokens],
            "samples": [samples_checksum(batch.sample_id)],
            **{f"builder {name}": values for name, values in builder_sums.items()},
        }
        for model, of_model in enumerate(updates):
            for number, update in enumerate(of_model):
                numbers |= {f"{model} {number} {name}": v for name, v in update.sums.items()}
        totals = self._step_sums.reduce(numbers)
        if self.group.rank == 0:
            expected = samples_checksum(self._step_samples())
            if (totals["samples"][0] - expected) % CHECKSUMS:
                raise DataError(
                    f"the ranks drew other samples in step {self.step} than {self._step_samples()[0]} to "
                    f"{self._step_samples()[-1]}"
                )
        metrics: dict[str, float] = {}
        for model, (learner, of_model) in enumerate(zip(self.learners, updates, strict=True)):
            of_updates = [
                means({name: totals[f"{model} {number} {name}"] for name in update.sums})
                for number, update in enumerate(of_model)
            ]
            metrics |= update_metrics(of_model, of_updates, learner.prefix)
        metrics |= means({name: totals[f"builder {name}"] for name in builder_sums})
        return metrics, int(totals["tokens"][0])

    def _step_samples(self) -> Ints:
        """Return the global samples of the step that was just made, those of all ranks."""
        return np.arange(
            self.samples - self.resolved.job.train.global_batch, self.samples, dtype=np.int64
        )

    def _log_step(
        self, metrics: Mapping[str, float], tokens: int, seconds: float, phases: Phases
    ) -> None:
        """Log a step's metrics, throughput and phase times, and a digest of the samples it trained on."""
        slow = self._stragglers.add(self.step, phases.seconds)
        if self.event_log is None:
            return
        for text in slow:
            self.event_log.write("message", self.step, text=text)
        ids = self._step_samples()
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


def update_metrics(
    updates: Sequence[Update], metrics: Sequence[Mapping[str, float]], prefix: str
) -> dict[str, float]:
    """Return the means over a step's updates of one model; `metrics` are those of each update.

    Updates without any weight, which have nothing to learn from, are left out. If all others were refused, loss
    and gradient norm are those of the refused ones.
    """
    # A refused update has metrics of a gradient that was never applied.
    applied = []
    values: dict[str, list[float]] = defaultdict(list)
    for update, of_update in zip(updates, metrics, strict=True):
        if update.weight and update.refused is None:
            applied.append(update)
            for name, value in of_update.items():
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


def samples_checksum(sample_id: Ints) -> float:
    """Return a checksum below `CHECKSUMS`; those of disjoint parts add up, modulo it, to that of the whole."""
    return float(int(mix(sample_id.astype(np.uint64)).sum(dtype=np.uint64)) % CHECKSUMS)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return a 63-bit seed for one rank's randomness in one step."""
    text = f"raymill/{seed}/{step}/{rank}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
