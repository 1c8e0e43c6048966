"""Fine-tuning without Ray, in separate processes, on given rows, which records every loss."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from engine.probe import join
from engine.ranks import run_ranks
from raymill.config import load
from raymill.data.store.rows import Rows
from raymill.schema.jobs import SftJob
from raymill.schema.sections import LoraConfig
from sections import plain
from servers import free_port

NEW_IDS = (257, 258)
VOCAB = 259


@dataclass(frozen=True)
class Case:
    """One configuration; `rows` has the rows of each step."""

    parent: str
    stage: int = 0
    micro_batch: int = 4
    precision: str = "fp32"
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    lora_rank: int = 0
    freeze: tuple[str, ...] = ()
    neftune_alpha: float = 0.0
    save_at: int = 0
    resume: bool = False

    @property
    def name(self) -> str:
        work = f"{self.stage}-{self.micro_batch}-{self.precision}"
        return f"{work}-{self.optimizer}-{self.lora_rank}-{self.neftune_alpha}"

    def job(self, global_batch: int) -> SftJob:
        job: SftJob = load(
            "sft", ["storage.root=/nowhere", f"zero=stage{self.stage}", f"optim={self.optimizer}"]
        )
        return replace(
            job,
            optim=replace(job.optim, learning_rate=self.learning_rate, weight_decay=0.0),
            train=replace(
                job.train,
                global_batch=global_batch,
                micro_batch=self.micro_batch,
                precision=self.precision,  # type: ignore[arg-type]
            ),
            lora=plain(LoraConfig, rank=self.lora_rank),
            freeze=self.freeze,
        )


def run_cases(rank: int, world: int, port: int, cases: list[Case], folder: Path) -> None:
    """Train every case in one process group; rank 0 writes `<name>.json`."""
    group = join(rank, world, port, folder)
    import numpy as np
    import torch
    import torch.distributed as dist

    from raymill.checkpoint.commit import commit
    from raymill.checkpoint.fence import raise_fence
    from raymill.checkpoint.manifest import CheckpointManifest
    from raymill.checkpoint.resume import newest_verified
    from raymill.engine.group import on_rank_zero
    from raymill.engine.loop import step_seed
    from raymill.engine.materialize import continue_from
    from raymill.engine.trainer import Trainer
    from raymill.model.parent import add_embedding_noise, freeze, plan_parent, with_adapters
    from raymill.objective.language_modeling import AssistantTokens

    steps: list[Rows] = pickle.loads((folder / "rows.pickle").read_bytes())
    for case in cases:
        job = case.job(len(steps[0]))
        checkpoints = folder / "checkpoints" / case.name
        found = newest_verified(checkpoints) if case.resume else None
        blueprint = plan_parent(Path(case.parent), VOCAB, NEW_IDS, "sdpa", 7)
        if case.lora_rank:
            blueprint = with_adapters(blueprint, job.lora, NEW_IDS, 7)
        if case.freeze:
            freeze(blueprint.model, case.freeze)
        if case.neftune_alpha:
            add_embedding_noise(blueprint.model, case.neftune_alpha)
        if found:
            continue_from(blueprint, found.reader())
        trainer = Trainer(job, blueprint, group)
        objective = AssistantTokens(trainer.model.get_output_embeddings())
        report: dict[str, object] = {}
        start = found.manifest.step if found else 0
        if found:
            trainer.load_state(found.reader(), start)
            reader = found.reader()
            report["identical"] = all(
                np.array_equal(values, reader.read(kind, name, first, values.size))
                for name, first, arrays in trainer.fragments()
                for kind, values in arrays.items()
            )
        before = {name: a["fp32"].copy() for name, _, a in trainer.fragments()}
        losses, norms = [], []
        for step, rows in enumerate(steps[start:], start):
            share = len(rows) // world
            mine = rows.part(rank * share, (rank + 1) * share)
            [weight] = group.sum(objective.weight(mine))
            torch.manual_seed(step_seed(7, step + 1, rank))
            nats = 0.0
            for first in range(0, share, case.micro_batch):
                trainer.begin_micro_batch(last=first + case.micro_batch >= share)
                part = mine.part(first, first + case.micro_batch)
                losses_B = objective.losses(trainer.engine, part, group.device)
                nats += float(losses_B.sum())
                trainer.backward(losses_B.sum(), weight)
            norms.append(trainer.update(case.learning_rate))
            losses.append(group.sum(nats)[0] / weight)
            if step + 1 == case.save_at:
                manifest = CheckpointManifest(
                    step + 1, 0, 0, world, 1, {}, "", (), "", None, None, {}
                )
                on_rank_zero(group, partial(raise_fence, checkpoints, 0))
                commit(
                    checkpoints, manifest, trainer.checkpoint_layout(), trainer.fragments(), group
                )
        after = {name: a["fp32"] for name, _, a in trainer.fragments()}
        still = [name for name in before if np.array_equal(before[name], after[name])]
        report.update(
            losses=losses,
            norms=norms,
            trained=sorted(trainer.checkpoint_layout().entries),
            still=still,
        )
        if rank == 0:
            suffix = "-resumed" if case.resume else ""
            (folder / f"{case.name}{suffix}.json").write_text(json.dumps(report))
        trainer.engine.destroy()
    dist.barrier()
    # Gloo's threads may still be ending; the interpreter's own exit sometimes aborts on them.
    os._exit(0)


def spawn(
    world: int, cases: list[Case], steps: list[Rows], folder: Path
) -> list[dict[str, object]]:
    """Run `cases` on `world` processes and return their results."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.pickle").write_bytes(pickle.dumps(steps))
    run_ranks(run_cases, (world, free_port(), cases, folder), world)
    return [
        json.loads((folder / f"{case.name}{'-resumed' if case.resume else ''}.json").read_text())
        for case in cases
    ]
