"""The one training loop: every job that trains runs through here, differing in its objective alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from raymill.checkpoint.commit import commit
from raymill.checkpoint.manifest import Manifest
from raymill.checkpoint.retention import apply_retention, registered_checkpoints
from raymill.data.manifest import Prepared
from raymill.data.rows import Rows
from raymill.data.stream import RankStream, StepBatch
from raymill.engine.assignment import Assignment
from raymill.engine.evaluation import Evaluator, Occasion
from raymill.engine.group import WorkerGroup
from raymill.engine.journal import Journal
from raymill.engine.schedule import learning_rate_factor
from raymill.engine.setup import Start, source_names
from raymill.engine.trainer import Trainer
from raymill.errors import DataError, NonFiniteError
from raymill.objective.objective import Objective, predicted_tokens

Floats = npt.NDArray[np.float64]


@dataclass
class Phases:
    """Seconds of one step by what they were spent on."""

    data: float = 0.0
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0


@dataclass
class Loop:
    """A run in progress on one rank. `step`, `samples` and `tokens` are the whole of its position."""

    assignment: Assignment
    prepared: list[Prepared]
    start: Start
    trainer: Trainer
    objective: Objective
    evaluators: list[Evaluator]
    stream: RankStream
    group: WorkerGroup
    journal: Journal | None  # rank 0's
    peak_flops: float  # of all workers together
    flops_per_token: float
    step: int = field(init=False)
    samples: int = field(init=False)
    tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.step = self.start.step
        self.samples = self.start.samples
        self.tokens = self.start.tokens

    def run(self) -> str:
        """Train to the end or until asked to stop; returns "finished" or "stopped"."""
        job, total = self.assignment.job, self.assignment.total_steps
        if self.step == 0:
            self._evaluate(Occasion(0, first=True, last=False))
        batches = iter(self.stream)
        while self.step < total:
            stop = self._train_step(batches)
            now = Occasion(self.step, first=False, last=self.step == total)
            self._evaluate(now)
            if stop or now.due(job.checkpoint.every):
                self._commit()
            if stop and not now.last:
                return "stopped"
        return "finished"

    def _train_step(self, batches: Iterator[StepBatch]) -> bool:
        """One optimizer step; returns whether a stop was asked for."""
        job = self.assignment.job
        began = time.perf_counter()
        phases = Phases()
        batch, refusal = self._next_batch(batches)
        phases.data = time.perf_counter() - began
        asked = self.group.rank == 0 and self.assignment.stop_request.exists()
        weight, learned, tokens, refusals, stop = self.group.sum(
            self.objective.weight(batch.rows) if batch else 0.0,
            self.objective.weight(batch.rows.unweighted()) if batch else 0.0,
            predicted_tokens(batch.rows) if batch else 0,
            refusal is not None,
            asked,
        )
        if refusals:
            raise next(error for error in self.group.gather(refusal) if error is not None)
        assert batch is not None
        # Dropout's randomness depends on the position alone, so there is no generator to save.
        torch.manual_seed(step_seed(job.run.seed, self.step + 1, self.group.rank))
        nats_B = self._accumulate(batch.rows, weight, phases)
        loss = self._checked_loss(float(nats_B.sum()), weight, batch)
        rate = job.optim.learning_rate * learning_rate_factor(
            job.schedule, self.step + 1, self.assignment.total_steps
        )
        began_update = time.perf_counter()
        norm = self.trainer.update(rate)
        phases.optimizer = time.perf_counter() - began_update
        if not np.isfinite(norm):
            raise self._non_finite("the gradient norm", batch)
        self.step += 1
        self.samples += job.train.global_batch
        self.tokens += int(tokens)
        figures = {
            "train/loss": loss,
            **self._loss_by_source(nats_B, batch),
            "train/learning_rate": rate,
            "train/grad_norm": norm,
            "perf/learned_share": learned / tokens,
        }
        self._log_step(figures, batch, int(tokens), time.perf_counter() - began, phases)
        return stop > 0

    def _next_batch(
        self, batches: Iterator[StepBatch]
    ) -> tuple[StepBatch | None, DataError | None]:
        """The next batch, or why there is none; the other ranks must hear of it before anyone raises."""
        try:
            return next(batches), None
        except DataError as error:
            return None, error

    def _accumulate(self, rows: Rows, weight: float, phases: Phases) -> Floats:
        """Forward and backward over the micro-batches; returns this rank's losses by row, in nats."""
        size = self.assignment.job.train.micro_batch
        losses = []
        for first in range(0, len(rows), size):
            began = time.perf_counter()
            self.trainer.begin_micro_batch(last=first + size >= len(rows))
            losses_B = self.objective.losses(
                self.trainer.engine, rows.part(first, first + size), self.group.device
            )
            losses.append(losses_B.detach())
            forwarded = time.perf_counter()
            self.trainer.backward(losses_B.sum(), weight)
            phases.forward += forwarded - began
            phases.backward += time.perf_counter() - forwarded
        return torch.cat(losses).double().cpu().numpy()

    def _loss_by_source(self, nats_B: Floats, batch: StepBatch) -> dict[str, float]:
        """Each data source's own loss in this step, where there are several."""
        names = source_names(self.prepared)
        if len(names) == 1:
            return {}
        sums = []
        for source in range(len(names)):
            mine = batch.source == source
            sums += [float(nats_B[mine].sum()), self.objective.weight(batch.rows.take(mine))]
        sums = self.group.sum(*sums)
        return {
            f"train/{name}/loss": sums[2 * source] / sums[2 * source + 1]
            for source, name in enumerate(names)
            if sums[2 * source + 1] > 0
        }

    def _checked_loss(self, nats: float, weight: float, batch: StepBatch) -> float:
        total, bad = self.group.sum(nats if np.isfinite(nats) else 0.0, not np.isfinite(nats))
        if bad:
            raise self._non_finite("the loss", batch, mine=not np.isfinite(nats))
        return total / weight

    def _non_finite(self, what: str, batch: StepBatch, mine: bool = True) -> NonFiniteError:
        """The same error for all ranks, naming the samples of those whose value was not finite."""
        ids = self.group.gather(batch.sample_id.tolist() if mine else [])
        ranks = [rank for rank, found in enumerate(ids) if found]
        samples = sorted(sample for found in ids for sample in found)
        return NonFiniteError(
            f"{what} of step {self.step + 1} is not finite (rank {', '.join(map(str, ranks))}; "
            f"global samples {_ranges(samples)}); nothing was updated, the last checkpoint stands"
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
                "perf/forward_s": phases.forward,
                "perf/backward_s": phases.backward,
                "perf/optimizer_s": phases.optimizer,
            },
        )

    def _evaluate(self, now: Occasion) -> None:
        figures: dict[str, float] = {}
        for evaluator in self.evaluators:
            figures |= evaluator.measure(self.trainer.model, self.group, now)
        if figures and self.journal is not None:
            self.journal.write("evaluation", self.step, tokens=self.tokens, **figures)

    def _commit(self) -> None:
        began = time.perf_counter()
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
            files={},
        )
        directory = commit(
            assignment.checkpoints,
            manifest,
            self.trainer.shapes,
            self.trainer.fragments(),
            self.group,
        )
        if self.journal is not None:
            keep = assignment.job.checkpoint
            apply_retention(
                assignment.checkpoints,
                keep.keep_last,
                keep.keep_every,
                registered_checkpoints(assignment.run_dir),
            )
            self.journal.write(
                "checkpoint",
                self.step,
                path=str(directory.relative_to(assignment.run_dir)),
                seconds=time.perf_counter() - began,
            )


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
