"""Tokens to reach a held-out loss, Muon compared with AdamW, each at its best learning rate, with three seeds.

    .venv/bin/python jobs/prepare.py experiment=bench data.sequence_length=128 tokenizer.vocab_size=1024
    .venv/bin/python bench/muon.py [time limit in seconds; none by default]

One process without Ray, through the trainer; a small Llama on the embedded corpus. The rate is constant after
a warm-up, so that every point of a curve is comparable. Finished runs are kept in storage/bench-muon.jsonl and
aren't repeated.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]

import torch
from raymill.config import load
from raymill.schema.jobs import PretrainJob
from raymill.data.store.location import prepared_folder
from raymill.data.store.rows import Rows
from raymill.data.store.validation import ValidationSet
from raymill.engine.group import WorkerGroup
from raymill.engine.trainer import Trainer
from raymill.model.build import plan_model
from raymill.objective.language_modeling import LanguageModeling
from trainer_alone import join_alone

OVERRIDES = (
    "experiment=bench", "zero=stage0", "data.sequence_length=128", "tokenizer.vocab_size=1024",
    "arch.hidden_size=128", "arch.heads=4", "arch.intermediate_size=352", "optim.weight_decay=0.1",
    "train.global_batch=16", "train.micro_batch=16", "train.steps=160",
)  # fmt: skip
FIRST_RATE = 1.5e-3
SEEDS = (1, 2, 3)
WARM_UP, EVERY, HELD_OUT_ROWS = 10, 10, 96
RESULTS = ROOT / "storage" / "bench-muon.jsonl"


@dataclass(frozen=True)
class Run:
    """Held-out losses in nats per token, each after a number of tokens, and median CPU seconds per step."""

    optimizer: str
    rate: float
    seed: int
    tokens: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    step_s: float = 0.0
    update_s: float = 0.0

    @property
    def key(self) -> tuple[str, float, int]:
        return self.optimizer, self.rate, self.seed

    def tokens_to(self, target: float) -> float | None:
        """Return the tokens to reach a loss, interpolated between two evaluations; None if it isn't reached."""
        for index in range(1, len(self.losses)):
            before, after = self.losses[index - 1 : index + 1]
            if after <= target:
                share = (before - target) / (before - after)
                low, high = self.tokens[index - 1 : index + 1]
                return low + share * (high - low)
        return None


def train(optimizer: str, rate: float, seed: int, group: WorkerGroup) -> Run:
    """Train one run of the sweep."""
    job: PretrainJob = load(
        "pretrain",
        [*OVERRIDES, f"optim={optimizer}", f"optim.learning_rate={rate}",
         f"storage.root={ROOT / 'storage'}"],
    )  # fmt: skip
    assert job.train.steps is not None, "the overrides set train.steps"
    folder = prepared_folder(job.data, job.tokenizer, job.run.seed, job.storage.folder)
    rows, held_out = rows_of(folder, "train"), rows_of(folder, "validation")
    spread = np.linspace(0, len(held_out) - 1, HELD_OUT_ROWS).astype(int)
    held_out = held_out.take(spread)
    order = np.random.default_rng(seed).permutation(len(rows))
    vocab_size = job.tokenizer.vocab_size
    trainer = Trainer(job, plan_model(job.arch, vocab_size, 0, seed), group)
    objective = LanguageModeling(0)
    batch, length = job.train.global_batch, job.data.sequence_length
    tokens, losses, seconds, updates = [0], [evaluated(trainer, held_out)], [], []
    for step in range(job.train.steps):
        started = time.process_time()
        part = rows.take(np.sort(order[step * batch : (step + 1) * batch]))
        trainer.begin_micro_batch(last=True)
        loss_sum = objective.losses(trainer.engine, part, group.device).sum()
        trainer.backward(loss_sum, objective.weight(part))
        update_started = time.process_time()
        trainer.update(rate * min(1.0, (step + 1) / WARM_UP))
        updates.append(time.process_time() - update_started)
        seconds.append(time.process_time() - started)
        if (step + 1) % EVERY == 0:
            tokens.append((step + 1) * batch * length)
            losses.append(evaluated(trainer, held_out))
    trainer.engine.destroy()
    return Run(
        optimizer, rate, seed, tuple(tokens), tuple(losses),
        statistics.median(seconds), statistics.median(updates),
    )  # fmt: skip


def rows_of(folder: Path, split: str) -> Rows:
    """Return all rows of a split."""
    every = ValidationSet(folder, rank=0, world_size=1, batch_rows=1024, split=split)
    return Rows.concatenated(list(every))


def evaluated(trainer: Trainer, rows: Rows) -> float:
    """Return the mean loss per token."""
    objective = LanguageModeling(0)
    trainer.model.eval()
    with torch.no_grad():
        losses = objective.losses(trainer.model, rows, trainer.group.device)
    trainer.model.train()
    return float(losses.sum()) / objective.weight(rows)


class Sweep:
    """Trains runs, and keeps their results in a file."""

    def __init__(self, deadline: float) -> None:
        self._group = join_alone()
        self._deadline = deadline
        self._runs: dict[tuple[str, float, int], Run] = {}
        if RESULTS.exists():
            for line in RESULTS.read_text().splitlines():
                fields = json.loads(line)
                run = Run(**fields | {key: tuple(fields[key]) for key in ("tokens", "losses")})
                self._runs[run.key] = run

    def run(self, optimizer: str, rate: float, seed: int) -> Run:
        """Return the run with these settings, from the file if it was trained before."""
        key = (optimizer, rate, seed)
        if key not in self._runs:
            if time.monotonic() > self._deadline:
                sys.exit("the time limit is reached; the same command continues")
            run = train(*key, self._group)
            self._runs[key] = run
            with RESULTS.open("a") as file:
                file.write(json.dumps(asdict(run)) + "\n")
        run = self._runs[key]
        print(f"{optimizer:6} rate {rate:<7g} seed {seed}: {run.losses[-1]:.4f}", flush=True)
        return run

    def best(self, optimizer: str) -> list[Run]:
        """Return the runs of all seeds at the best rate.

        The search starts at `FIRST_RATE`, and doubles and halves the rate as long as the last loss of the first
        seed falls. So the best rate has a worse one on either side.
        """
        best = self.run(optimizer, FIRST_RATE, SEEDS[0])
        for factor in (2.0, 0.5):
            while True:
                candidate = self.run(optimizer, best.rate * factor, SEEDS[0])
                if not candidate.losses[-1] < best.losses[-1]:
                    break
                best = candidate
        return [self.run(optimizer, best.rate, seed) for seed in SEEDS]


def main() -> None:
    budget = float(sys.argv[1]) if len(sys.argv) > 1 else float("inf")
    sweep = Sweep(time.monotonic() + budget)
    best = {optimizer: sweep.best(optimizer) for optimizer in ("adamw", "muon")}
    target = statistics.mean(run.losses[-1] for run in best["adamw"])
    print(
        f"target: {target:.4f} nats per token, AdamW's mean after {best['adamw'][0].tokens[-1]:,} tokens"
    )
    for optimizer, runs in best.items():
        reached = [run.tokens_to(target) for run in runs]
        needed = ", ".join("not reached" if t is None else f"{t:,.0f}" for t in reached)
        last = ", ".join(f"{run.losses[-1]:.4f}" for run in runs)
        print(f"{optimizer} at {runs[0].rate:g}: {needed} tokens to the target; last losses {last}")
    whole = {name: statistics.median(run.step_s for run in runs) for name, runs in best.items()}
    update = {name: statistics.median(run.update_s for run in runs) for name, runs in best.items()}
    print(
        f"a step takes {whole['muon'] / whole['adamw']:.3f} of AdamW's CPU time; its update "
        f"{1e3 * update['muon']:.1f} ms, AdamW's {1e3 * update['adamw']:.1f} ms of {1e3 * whole['adamw']:.0f}"
    )


if __name__ == "__main__":
    main()
