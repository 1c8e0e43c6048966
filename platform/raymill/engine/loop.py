"""The one training loop: every job that trains runs through here, differing in its objective alone."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
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
from raymill.engine.guard import Guard, leave_out
from raymill.engine.host_copy import HostCopy
from raymill.engine.journal import Journal
from raymill.engine.learner import Learner, Phases, Update
from raymill.engine.pulse import Pulse
from raymill.engine.schedule import learning_rate_factor
from raymill.engine.setup import Start
from raymill.engine.stragglers import OWN, Stragglers
from raymill.errors import CheckpointError, DataError, NonFiniteError, RaymillError, RewindError


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
    pulse: Pulse
    peak_flops: float  # of all workers together
    flops_per_token: float
    guard: Guard = field(init=False)
    step: int = field(init=False)
    samples: int = field(init=False)
    tokens: int = field(init=False)
    _ahead: StepBatch | None = field(default=None, init=False)  # drawn already, for the next step
    _committed: int = field(init=False)  # samples consumed at the last checkpoint
    _committing: int = field(init=False)  # and at the one under way
    _commits: BackgroundCommits = field(init=False)
    _stragglers: Stragglers = field(default_factory=Stragglers, init=False)
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
        self._committed = self._committing = self.start.consumed
        self.guard = Guard(self.assignment.job.guard)
        self.guard.restore(self.start.guard)
        self.guard.skipped += [
            window for window in self.start.windows if window not in self.guard.skipped
        ]

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
        phases = Phases(self._beat)
        phases.enter("data")
        batch, upcoming, refusal = self._next_batch(batches)
        phases.enter(None)
        refusal = refusal or self._settle_commit()
        asked = self.group.rank == 0 and self.assignment.stop_request.exists()
        refusals, stop = self.group.sum(refusal is not None, asked)
        if refusals:
            raise next(error for error in self.group.gather(refusal) if error is not None)
        assert batch is not None
        phases.enter("gather")
        gathered = self.experience.gather(batch, self.step + 1, upcoming)
        phases.enter(None)
        # Dropout's randomness depends on the position alone, so there is no generator to save.
        torch.manual_seed(step_seed(job.run.seed, self.step + 1, self.group.rank))
        factor = learning_rate_factor(job.schedule, self.step + 1, self.assignment.total_steps)

        figures: dict[str, float] = {}
        losses: list[Floats] = []
        for learner in self.learners:
            done = []
            for rows, samples in zip(gathered.updates, gathered.samples, strict=True):
                update = learner.update(
                    rows, learner.peak_rate * factor, phases, self.guard.refusal
                )
                if update.refused is not None:
                    self._refuse(update, samples)
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

    def _refuse(self, update: Update, own: npt.NDArray[np.int64]) -> None:
        """An update that wasn't made: note whose samples it would have learned from, and go on, or don't.

        Raises:
            NonFiniteError: the run ends, on all ranks alike.
            RewindError: it goes back to its last checkpoint.
        """
        told = self.group.gather((own.tolist(), update.mine))
        guilty = [rank for rank, (_, mine) in enumerate(told) if mine] or list(range(len(told)))
        samples = sorted(sample for rank in guilty for sample in told[rank][0])
        what = (
            f"{update.refused} in step {self.step + 1} (rank {', '.join(map(str, guilty))}; global samples "
            f"{_ranges(samples)})"
        )
        if self.journal is not None:
            self.journal.write(
                "refused", self.step + 1, text=what, by_rank=[sorted(ids) for ids, _ in told]
            )
        policy, batch = self.assignment.job.guard.policy, self.assignment.job.train.global_batch
        if policy == "stop":
            raise NonFiniteError(f"{what}; that update wasn't made, and the last checkpoint stands")
        if policy == "rewind":
            self._rewind(what, self.samples + batch - 1)
        if not self.guard.skip(self.samples, self.samples + batch - 1):
            raise NonFiniteError(
                f"{what}; {self.guard.in_a_row} updates in a row weren't made "
                f"(guard.most_in_a_row={self.guard.config.most_in_a_row}), and the last checkpoint stands"
            )
        if self.journal is not None:
            self.journal.write("message", self.step + 1, text=f"{what}; that update was skipped")

    def _rewind(self, what: str, last: int) -> None:
        """Have the run start again from its last checkpoint, past the samples up to the last one drawn.

        Raises:
            RewindError: always, on all ranks, but where that was done often enough.
            NonFiniteError: it was.
        """
        self._settle_commit(wait=True)
        windows = self.start.windows if self._committed == self.start.consumed else ()
        if len(windows) >= self.guard.config.most_in_a_row:
            raise NonFiniteError(
                f"{what}; the run has gone back to its last checkpoint {len(windows)} times since "
                f"(guard.most_in_a_row={self.guard.config.most_in_a_row}), which stands"
            )
        first = self._committed if not windows else windows[-1][1] + 1
        if self.journal is not None:
            leave_out(self.assignment.run_dir, first, last, what)
        raise RewindError(
            f"{what}; back to the last checkpoint, and past the samples {first}-{last} since"
        )

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
        if self.journal is None:
            return
        ids = np.sort(np.concatenate([samples for samples, _ in told]))
        for text in self._stragglers.add(self.step, [seconds for _, seconds in told]):
            self.journal.write("message", self.step, text=text)
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
                "perf/data_wait_s": phases.seconds["data"],
                **{
                    f"perf/{phase}_s": phases.seconds[phase]
                    for phase in ("gather", "forward", "backward", "optimizer")
                },
            },
        )

    def _evaluate(self, now: Occasion) -> None:
        self._beat("evaluate")
        figures: dict[str, float] = {}
        for evaluator in self.evaluators:
            figures |= evaluator.measure(self.learners[0].model, self.group, now)
        if figures and self.journal is not None:
            self.journal.write("evaluation", self.step, tokens=self.tokens, **figures)

    def _beat(self, phase: str) -> None:
        self.pulse.step = self.step + 1
        self.pulse.beat(phase)

    def _begin_commit(self) -> None:
        """Copy the state; it is written while training goes on."""
        began = time.perf_counter()
        self._beat("commit")
        self._settle_commit(wait=True)
        assignment = self.assignment
        self._committing = self.samples
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
            guard=self.guard.state(),
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
        if outcome.directory is not None:
            self._committed = self._committing
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


def _ranges(numbers: list[int]) -> str:
    """[3, 4, 5, 9] → "3-5, 9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
