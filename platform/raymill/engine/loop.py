"""The one training loop: every job that trains runs through here, differing in its objective alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from raymill.checkpoint.commit import commit
from raymill.checkpoint.manifest import Manifest
from raymill.checkpoint.retention import apply_retention, registered_checkpoints
from raymill.data.manifest import Prepared
from raymill.data.stream import RankStream, StepBatch
from raymill.data.validation import ValidationSet
from raymill.engine.assignment import Assignment
from raymill.engine.evaluation import evaluate
from raymill.engine.group import WorkerGroup
from raymill.engine.journal import Journal
from raymill.engine.samples import write_samples
from raymill.engine.schedule import learning_rate_factor
from raymill.engine.setup import Start
from raymill.engine.trainer import Trainer
from raymill.errors import DataError, NonFiniteError
from raymill.objective.language_modelling import LanguageModelling, Rows


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
    objective: LanguageModelling
    held_out: ValidationSet
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
            self._evaluate()
        batches = iter(self.stream)
        while self.step < total:
            stop = self._train_step(batches)
            last = self.step == total
            if last or _due(self.step, job.evaluation.every):
                self._evaluate()
            if (last or _due(self.step, job.evaluation.sample_every)) and job.evaluation.prompts:
                self._sample()
            if last or stop or _due(self.step, job.checkpoint.every):
                self._commit()
            if stop and not last:
                return "stopped"
        return "finished"

    def _train_step(self, batches: Iterator[StepBatch]) -> bool:
        """One optimizer step; returns whether a stop was asked for."""
        job = self.assignment.job
        began = time.perf_counter()
        phases = Phases()
        batch, refusal = self._next_batch(batches)
        phases.data = time.perf_counter() - began
        rows = Rows(batch.tokens, batch.length) if batch else None
        local_tokens = self.objective.predicted_tokens(rows) if rows else 0
        asked = self.group.rank == 0 and self.assignment.stop_request.exists()
        global_tokens, refusals, stop = self.group.sum(local_tokens, refusal is not None, asked)
        if refusals:
            raise next(error for error in self.group.gather(refusal) if error is not None)
        assert batch is not None and rows is not None
        # Dropout's randomness depends on the position alone, so there is no generator to save.
        torch.manual_seed(step_seed(job.run.seed, self.step + 1, self.group.rank))
        nats = self._accumulate(rows, global_tokens, phases)
        loss = self._checked_loss(nats, global_tokens, batch)
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
        self.tokens += int(global_tokens)
        seconds = time.perf_counter() - began
        self._log_step(loss, rate, norm, batch, int(global_tokens), seconds, phases)
        return stop > 0

    def _next_batch(
        self, batches: Iterator[StepBatch]
    ) -> tuple[StepBatch | None, DataError | None]:
        """The next batch, or why there is none; the other ranks must hear of it before anyone raises."""
        try:
            return next(batches), None
        except DataError as error:
            return None, error

    def _accumulate(self, rows: Rows, global_tokens: float, phases: Phases) -> float:
        """Forward and backward over the micro-batches; returns this rank's summed loss in nats."""
        size = self.assignment.job.train.micro_batch
        total = torch.zeros((), dtype=torch.float64, device=self.group.device)
        for first in range(0, len(rows), size):
            began = time.perf_counter()
            self.trainer.begin_micro_batch(last=first + size >= len(rows))
            loss_sum = self.objective.loss_sum(
                self.trainer.engine, rows.part(first, first + size), self.group.device
            )
            total += loss_sum.detach().double()
            forwarded = time.perf_counter()
            self.trainer.backward(loss_sum, global_tokens)
            phases.forward += forwarded - began
            phases.backward += time.perf_counter() - forwarded
        return float(total)

    def _checked_loss(self, nats: float, global_tokens: float, batch: StepBatch) -> float:
        total, bad = self.group.sum(nats if np.isfinite(nats) else 0.0, not np.isfinite(nats))
        if bad:
            raise self._non_finite("the loss", batch, mine=not np.isfinite(nats))
        return total / global_tokens

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
        loss: float,
        rate: float,
        norm: float,
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
                "train/loss": loss,
                "train/learning_rate": rate,
                "train/grad_norm": norm,
                "perf/tokens_per_s": per_second,
                "perf/mfu": per_second * self.flops_per_token / self.peak_flops,
                "perf/step_s": seconds,
                "perf/data_wait_s": phases.data,
                "perf/forward_s": phases.forward,
                "perf/backward_s": phases.backward,
                "perf/optimizer_s": phases.optimizer,
            },
        )

    def _evaluate(self) -> None:
        result = evaluate(self.trainer.model, self.objective, self.held_out, self.group)
        if self.journal is not None:
            self.journal.write("evaluation", self.step, tokens=self.tokens, **result.metrics())

    def _sample(self) -> None:
        path = write_samples(
            self.trainer.model,
            self.prepared[0],
            self.assignment.job.evaluation,
            self.assignment.run_dir,
            seed=self.assignment.job.run.seed,
            step=self.step,
            group=self.group,
        )
        if self.journal is not None:
            self.journal.write("samples", self.step, samples_path=path)

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


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _ranges(numbers: list[int]) -> str:
    """[3, 4, 5, 9] → "3-5, 9"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
