"""The one training loop: every job that trains runs through here, differing in its objective alone."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

import numpy as np
import torch

from raymill.data.store.manifest import PreparedData
from raymill.data.store.stream import RankStream, StepBatch
from raymill.engine.agreement import raise_together
from raymill.engine.batches import BatchBuilder, Floats
from raymill.engine.checkpoints import Checkpoints, Position
from raymill.engine.compilation import Compiles
from raymill.engine.device import device_memory
from raymill.engine.divergence import Divergence
from raymill.engine.evaluation import EvalPoint, Evaluator
from raymill.engine.event_log import EventLog
from raymill.engine.failure_note import OtherRankError
from raymill.engine.group import WorkerGroup
from raymill.engine.guard import Guard
from raymill.engine.heartbeat import Heartbeat
from raymill.engine.learner import Learner, Phases, Update
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.schedule import learning_rate_factor
from raymill.engine.start import StartPoint
from raymill.engine.stragglers import OWN, Stragglers
from raymill.errors import RaymillError
from raymill.reading import is_file
from raymill.timeline import mark


@dataclass
class Loop:
    """A run in progress on one rank. `step`, `samples` and `tokens`, with the experience's state, are the
    whole of its position."""

    resolved: ResolvedRun
    prepared: list[PreparedData]
    start: StartPoint
    learners: list[Learner]  # the first is what the job is about
    experience: BatchBuilder
    evaluators: list[Evaluator]
    stream: RankStream
    group: WorkerGroup
    event_log: EventLog | None  # rank 0's
    heartbeat: Heartbeat
    peak_flops: float  # of all workers together
    flops_per_token: float
    guard: Guard = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    step: int = field(init=False)
    samples: int = field(init=False)
    tokens: int = field(init=False)
    _ahead: StepBatch | None = field(default=None, init=False)  # drawn already, for the next step
    _divergence: Divergence = field(init=False)
    _stragglers: Stragglers = field(default_factory=Stragglers, init=False)
    _compiles: Compiles = field(init=False)

    def __post_init__(self) -> None:
        start, group, event_log = self.start, self.group, self.event_log
        self.step, self.samples, self.tokens = start.step, start.samples, start.tokens
        self._compiles = Compiles(self.heartbeat)
        self.guard = Guard(self.resolved.job.guard)
        self.guard.restore(start.guard)
        self.guard.left_out(start.windows)
        self.checkpoints = Checkpoints(
            self.resolved, self.prepared, self.learners, group, event_log, start.consumed
        )
        self._divergence = Divergence(
            self.guard, self.resolved, start, self.checkpoints, group, event_log
        )

    def run(self) -> str:
        """Train to the end or until asked to stop; returns "finished" or "stopped"."""
        try:
            with self._compiles.told() if self.resolved.job.train.compile else nullcontext():
                status = self._run()
        except (RaymillError, OtherRankError):
            self._beat("commit")
            # The one under way isn't given up, unless the ranks that it takes are lost too.
            with suppress(Exception):
                self.checkpoints.settle(self.step, wait=True)
            self.experience.close()
            raise
        self.experience.close()
        return status

    def _run(self) -> str:
        job, total = self.resolved.job, self.resolved.total_steps
        if self.step == 0:
            self._evaluate(EvalPoint(0, first=True, last=False))
        mark("first evaluation")
        batches = iter(self.stream)
        first = self.step
        while self.step < total:
            if not self._train_step(batches):
                self._keep_what_was_made()
                break
            if self.step == first + 1:
                mark("first step")
            now = EvalPoint(self.step, first=False, last=self.step == total)
            self._evaluate(now)
            if now.due(job.checkpoint.every):
                self._begin_commit()
        self._beat("commit")
        self.checkpoints.settle(self.step, wait=True, last=True)
        return "finished" if self.step == total else "stopped"

    def _keep_what_was_made(self) -> None:
        """Before a stop: a checkpoint of this step, unless there is one."""
        self._beat("commit")
        self.checkpoints.settle(self.step, wait=True)
        if self.step > self.start.step and self.checkpoints.committed != self.samples:
            self._begin_commit()

    def _begin_commit(self) -> None:
        self._beat("commit")
        at = Position(self.step, self.samples, self.tokens)
        self.checkpoints.begin(at, self.experience.state(), self.guard.state())

    def _train_step(self, batches: Iterator[StepBatch]) -> bool:
        """One step, of one optimizer update or several; False, and none, where a stop was asked for."""
        job = self.resolved.job
        began = time.perf_counter()
        phases = Phases(self._beat)
        phases.enter("data")
        batch, upcoming, refusal = self._next_batch(batches)
        phases.enter(None)
        refusal = refusal or self.checkpoints.settle(self.step)
        asked = self.group.rank == 0 and is_file(self.resolved.stop_request)
        refusals, stop = self.group.sum(refusal is not None, asked)
        if refusals:
            raise_together(self.group, refusal)
        if stop:
            return False
        assert batch is not None
        phases.enter("gather")
        gathered = self.experience.build_step(batch, self.step + 1, upcoming)
        phases.enter(None)
        # Dropout's randomness depends on the position alone, so there is no generator to save.
        torch.manual_seed(step_seed(job.run.seed, self.step + 1, self.group.rank))
        factor = learning_rate_factor(job.schedule, self.step + 1, self.resolved.total_steps)

        figures: dict[str, float] = {}
        losses: list[Floats] = []
        for learner in self.learners:
            done = []
            for rows, samples in zip(gathered.updates, gathered.samples, strict=True):
                update = learner.update(
                    rows, learner.peak_rate * factor, phases, self.guard.refusal
                )
                if update.refused is not None:
                    self._beat("commit")  # which may be waited for
                    self._divergence.follow(
                        update, learner.prefix, samples, self.step + 1, self.samples
                    )
                elif update.weight:
                    self.guard.made(learner.prefix)
                done.append(update)
            figures |= _figures(done, learner.prefix)
            losses = losses or [update.losses for update in done]
        if "train/loss" in figures and not figures.get("train/skipped"):
            self.guard.learned(figures["train/loss"])
        self.step += 1
        self.samples += job.train.global_batch
        self.tokens += gathered.tokens
        figures |= {
            **self.experience.learned(losses, batch),
            "train/learning_rate": self.learners[0].peak_rate * factor,
            **gathered.figures,
        }
        self._log_step(figures, batch, gathered.tokens, time.perf_counter() - began, phases)
        return True

    def _next_batch(
        self, batches: Iterator[StepBatch]
    ) -> tuple[StepBatch | None, StepBatch | None, Exception | None]:
        """The next batch and, where it is wanted, the one after it; or why there is none. The other ranks
        must hear of that before anyone raises."""
        try:
            batch, self._ahead = self._ahead or next(batches), None
            if self.experience.lookahead and self.step + 1 < self.resolved.total_steps:
                self._ahead = next(batches)
            return batch, self._ahead, None
        except Exception as error:  # noqa: BLE001  (raised again once the others have heard)
            return None, None, error

    def _log_step(
        self,
        figures: dict[str, float],
        batch: StepBatch,
        tokens: int,
        seconds: float,
        phases: Phases,
    ) -> None:
        own = {phase: phases.seconds[phase] for phase in OWN}
        told = self.group.gather((batch.sample_id, own))
        if self.event_log is None:
            return
        ids = np.sort(np.concatenate([samples for samples, _ in told]))
        for text in self._stragglers.add(self.step, [seconds for _, seconds in told]):
            self.event_log.write("message", self.step, text=text)
        per_second = tokens / seconds
        self.event_log.write(
            "step",
            self.step,
            samples=self.samples,
            tokens=self.tokens,
            sample_ids_sha256=hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest(),
            **{
                **figures,
                "perf/tokens_per_s": per_second,
                "perf/mfu": per_second * self.flops_per_token / self.peak_flops,
                "perf/step_s": seconds,
                **device_memory(self.group.device),
                **self._compiles.figures(),
                "perf/data_wait_s": phases.seconds["data"],
                **{
                    f"perf/{phase}_s": phases.seconds[phase]
                    for phase in ("gather", "forward", "backward", "optimizer")
                },
            },
        )

    def _evaluate(self, now: EvalPoint) -> None:
        self._beat("evaluate")
        figures: dict[str, float] = {}
        for evaluator in self.evaluators:
            figures |= evaluator.measure(self.learners[0].model, self.group, now)
        if figures and self.event_log is not None:
            self.event_log.write("evaluation", self.step, tokens=self.tokens, **figures)

    def _beat(self, phase: str) -> None:
        self.heartbeat.step = self.step + 1
        self.heartbeat.beat(phase)


def _figures(done: list[Update], prefix: str) -> dict[str, float]:
    """Means over a step's updates, those that had nothing to learn left out."""
    learned = [update for update in done if update.weight and update.refused is None]
    found: dict[str, list[float]] = defaultdict(list)
    for update in learned:
        for name, value in update.figures.items():
            found[name].append(value)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    named = prefix or "train/"
    shown = learned or [update for update in done if update.refused is not None]
    count = max(1, len(shown))
    return {
        f"{named}loss": sum(update.loss for update in shown) / count,
        f"{named}grad_norm": sum(update.norm for update in shown) / count,
        **({} if len(learned) == len(done) else {f"{named}skipped": len(done) - len(learned)}),
        **means,
    }


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for one rank's randomness in one step."""
    text = f"raymill/{seed}/{step}/{rank}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1
