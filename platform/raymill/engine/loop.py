"""The one training loop: every job that trains runs through here, differing in its objective alone."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from raymill.checkpoint.background import BackgroundCommits, Outcome
from raymill.checkpoint.fence import FencedError
from raymill.checkpoint.manifest import Manifest
from raymill.checkpoint.retention import apply_retention, registered_checkpoints
from raymill.data.manifest import Prepared
from raymill.data.stream import RankStream, StepBatch
from raymill.engine.assignment import Assignment
from raymill.engine.evaluation import Evaluator, Occasion
from raymill.engine.experience import Experience, Floats
from raymill.engine.group import WorkerGroup
from raymill.engine.host_copy import HostCopy
from raymill.engine.journal import Journal
from raymill.engine.learner import Learner, Phases, Update
from raymill.engine.schedule import learning_rate_factor
from raymill.engine.setup import Start
from raymill.errors import CheckpointError, DataError, NonFiniteError, RaymillError


@dataclass
class Loop:
    """A run in progress on one rank. `step`, `samples` and `tokens`, with the experience's state, are the
    whole of its position."""

    assignment: Assignment
    prepared: list[Prepared]
    start: Start
    learners: list[Learner]  # the first is what the job is about
    experience: Experience
    evaluators: list[Evaluator]
    stream: RankStream
    group: WorkerGroup
    journal: Journal | None  # rank 0's
    peak_flops: float  # of all workers together
    flops_per_token: float
    step: int = field(init=False)
    samples: int = field(init=False)
    tokens: int = field(init=False)
    _ahead: StepBatch | None = field(default=None, init=False)  # drawn already, for the next step
    _commits: BackgroundCommits = field(init=False)
    _host_copy: HostCopy = field(default_factory=HostCopy, init=False)
    _stall: float = field(
        default=0.0, init=False
    )  # seconds that the commit under way cost the loop

    def __post_init__(self) -> None:
        self._commits = BackgroundCommits(
            self.assignment.checkpoints, self.group.beside(), self._retain
        )
        self.step = self.start.step
        self.samples = self.start.samples
        self.tokens = self.start.tokens

    def run(self) -> str:
        """Train to the end or until asked to stop; returns "finished" or "stopped"."""
        try:
            return self._run()
        finally:
            self.experience.close()

    def _run(self) -> str:
        job, total = self.assignment.job, self.assignment.total_steps
        if self.step == 0:
            self._evaluate(Occasion(0, first=True, last=False))
        batches = iter(self.stream)
        while self.step < total:
            stop = self._train_step(batches)
            now = Occasion(self.step, first=False, last=self.step == total)
            self._evaluate(now)
            if stop or now.due(job.checkpoint.every):
                self._begin_commit()
            if stop and not now.last:
                break
        self._settle_commit(wait=True, last=True)
        return "finished" if self.step == total else "stopped"

    def _train_step(self, batches: Iterator[StepBatch]) -> bool:
        """One step, of one optimizer update or several; returns whether a stop was asked for."""
        job = self.assignment.job
        began = time.perf_counter()
        phases = Phases()
        batch, upcoming, refusal = self._next_batch(batches)
        phases.data = time.perf_counter() - began
        refusal = refusal or self._settle_commit()
        asked = self.group.rank == 0 and self.assignment.stop_request.exists()
        refusals, stop = self.group.sum(refusal is not None, asked)
        if refusals:
            raise next(error for error in self.group.gather(refusal) if error is not None)
        assert batch is not None
        began_gathering = time.perf_counter()
        gathered = self.experience.gather(batch, self.step + 1, upcoming)
        phases.gather = time.perf_counter() - began_gathering
        # Dropout's randomness depends on the position alone, so there is no generator to save.
        torch.manual_seed(step_seed(job.run.seed, self.step + 1, self.group.rank))
        factor = learning_rate_factor(job.schedule, self.step + 1, self.assignment.total_steps)

        figures: dict[str, float] = {}
        losses: list[Floats] = []
        for learner in self.learners:
            done = [
                learner.update(
                    rows, learner.peak_rate * factor, phases, partial(self._non_finite, samples)
                )
                for rows, samples in zip(gathered.updates, gathered.samples, strict=True)
            ]
            figures |= _figures(done, learner.prefix)
            losses = losses or [update.losses for update in done]
        self.step += 1
        self.samples += job.train.global_batch
        self.tokens += gathered.tokens
        figures |= {
            **self.experience.learned(losses, batch),
            "train/learning_rate": self.learners[0].peak_rate * factor,
            **gathered.figures,
        }
        self._log_step(figures, batch, gathered.tokens, time.perf_counter() - began, phases)
        return stop > 0

    def _next_batch(
        self, batches: Iterator[StepBatch]
    ) -> tuple[StepBatch | None, StepBatch | None, RaymillError | None]:
        """The next batch and, where it is wanted, the one after it; or why there is none. The other ranks
        must hear of that before anyone raises."""
        try:
            batch, self._ahead = self._ahead or next(batches), None
            if self.experience.lookahead and self.step + 1 < self.assignment.total_steps:
                self._ahead = next(batches)
            return batch, self._ahead, None
        except DataError as error:
            return None, None, error

    def _non_finite(self, own: npt.NDArray[np.int64], what: str, mine: bool) -> NonFiniteError:
        """The same error for all ranks, naming the samples of those whose value was not finite."""
        ids = self.group.gather(own.tolist() if mine else [])
        ranks = [rank for rank, found in enumerate(ids) if found]
        samples = sorted(sample for found in ids for sample in found)
        return NonFiniteError(
            f"{what} of step {self.step + 1} is not finite (rank {', '.join(map(str, ranks))}; "
            f"global samples {_ranges(samples)}); that update wasn't made, and the last checkpoint stands"
        )

    def _log_step(
        self,
        figures: dict[str, float],
        batch: StepBatch,
        tokens: int,
        seconds: float,
        phases: Phases,
    ) -> None:
        ids = np.sort(np.concatenate(self.group.gather(batch.sample_id)))
        if self.journal is None:
            return
        per_second = tokens / seconds
        self.journal.write(
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
                "perf/data_wait_s": phases.data,
                "perf/gather_s": phases.gather,
                "perf/forward_s": phases.forward,
                "perf/backward_s": phases.backward,
                "perf/optimizer_s": phases.optimizer,
            },
        )

    def _evaluate(self, now: Occasion) -> None:
        figures: dict[str, float] = {}
        for evaluator in self.evaluators:
            figures |= evaluator.measure(self.learners[0].model, self.group, now)
        if figures and self.journal is not None:
            self.journal.write("evaluation", self.step, tokens=self.tokens, **figures)

    def _begin_commit(self) -> None:
        """Copy the state; it is written while training goes on."""
        began = time.perf_counter()
        self._settle_commit(wait=True)
        assignment = self.assignment
        manifest = Manifest(
            step=self.step,
            samples=self.samples,
            tokens=self.tokens,
            world_size=self.group.world_size,
            attempt=self.journal.attempt if self.journal else 0,
            config=assignment.config,
            config_digest=assignment.config_digest,
            data_digests=tuple(data.manifest.digest for data in self.prepared),
            tokenizer_fingerprint=self.prepared[0].manifest.tokenizer.fingerprint,
            code_commit=assignment.code_commit,
            parent=assignment.parent,
            parent_digest=assignment.parent_digest,
            model_digests=assignment.model_digests,
            updates={learner.prefix: learner.trainer.updates for learner in self.learners},
            state=deepcopy(self.experience.state()),
            token=assignment.token,
            files={},
        )
        trainers = [learner.trainer for learner in self.learners]
        self._commits.begin(
            manifest,
            {name: shape for trainer in trainers for name, shape in trainer.shapes.items()},
            self._host_copy.take(trainers),
        )
        self._stall = time.perf_counter() - began

    def _settle_commit(self, wait: bool = False, last: bool = False) -> RaymillError | None:
        """Tell how the commit under way ended, if it has. One that failed costs an interval and not the run,
        but for the last, and but for a run that is another's by now: that one is returned, or raised where
        this rank waited, as all ranks do then."""
        began = time.perf_counter()
        outcome = self._commits.take(wait)
        if outcome is None:
            return None
        if wait:
            self._stall += time.perf_counter() - began
        self._tell(outcome)
        error = outcome.error
        if not isinstance(error, CheckpointError) or not (last or isinstance(error, FencedError)):
            return None
        if wait:
            raise error
        return error

    def _tell(self, outcome: Outcome) -> None:
        if self.journal is None:
            return
        if outcome.directory is None:
            self.journal.write("message", self.step, text=str(outcome.error))
            return
        self.journal.write(
            "checkpoint",
            outcome.step,
            path=str(outcome.directory.relative_to(self.assignment.run_dir)),
            seconds=outcome.seconds,
            stall_s=self._stall,
            bytes=outcome.size,
        )

    def _retain(self, _directory: Path) -> None:
        """On rank 0, behind the training. What can't be deleted is tried again next time."""
        keep = self.assignment.job.checkpoint
        with suppress(OSError):
            apply_retention(
                self.assignment.checkpoints,
                keep.keep_last,
                keep.keep_every,
                registered_checkpoints(self.assignment.run_dir),
            )


def _figures(done: list[Update], prefix: str) -> dict[str, float]:
    """Means over a step's updates, those that had nothing to learn left out."""
    learned = [update for update in done if update.weight]
    found: dict[str, list[float]] = defaultdict(list)
    for update in learned:
        for name, value in update.figures.items():
            found[name].append(value)
    means = {name: sum(values) / len(values) for name, values in found.items()}
    named = prefix or "train/"
    count = max(1, len(learned))
    return {
        f"{named}loss": sum(update.loss for update in learned) / count,
        f"{named}grad_norm": sum(update.norm for update in learned) / count,
        **({} if len(learned) == len(done) else {f"{named}skipped": len(done) - len(learned)}),
        **means,
    }


def step_seed(seed: int, step: int, rank: int) -> int:
    """A 63-bit seed for one rank's randomness in one step."""
    text = f"raymill/{seed}/{step}/{rank}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def _ranges(numbers: list[int]) -> str:
    """[3, 4, 5, 9] → "3-5, 9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
