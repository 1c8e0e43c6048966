"""The trainer without Ray, in separate processes, which records every loss."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.ranks import run_ranks
from raymill.schema.data_sections import DataConfig, TokenizerConfig
from raymill.schema.jobs import PretrainJob
from raymill.schema.sections import (
    ArchConfig,
    CheckpointConfig,
    ClusterConfig,
    GuardConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    TextEvaluation,
    TrackingConfig,
    TrainConfig,
    WatchdogConfig,
    ZeroConfig,
)
from raymill.schema.storage import StorageConfig
from sections import plain
from servers import free_port

if TYPE_CHECKING:
    from raymill.checkpoint.fragments import FragmentReader
    from raymill.engine.group import WorkerGroup
    from raymill.engine.trainer import Trainer

VOCAB, LENGTH, BATCH, SEED = 257, 32, 8, 7
ARCH = plain(ArchConfig,
    name="probe", family="llama", hidden_size=48, layers=2, heads=4, kv_heads=2, head_dim=None,
    intermediate_size=96, vocab_size=None, max_positions=64, tied_embeddings=True,
)  # fmt: skip
SCHEDULE = plain(ScheduleConfig, "cosine", warmup_steps=5, final_fraction=0.1)


@dataclass(frozen=True)
class Case:
    """One configuration of the trainer. Data and schedule are made for `of` steps."""

    stage: int = 0
    micro_batch: int = 4
    precision: str = "fp32"
    steps: int = 50
    save_at: int = 0
    resume: bool = False
    fresh_moments: bool = False
    recompute: bool = False
    offload: str = "none"
    batch: int = BATCH
    of: int | None = None
    optimizer: str = "adamw"

    @property
    def name(self) -> str:
        extras = ("-recompute" if self.recompute else "") + f"-{self.offload}-{self.optimizer}"
        return f"zero{self.stage}-micro{self.micro_batch}-{self.precision}{extras}"


def job_of(case: Case, gpu: bool = False) -> PretrainJob:
    return plain(
        PretrainJob,
        arch=ARCH,
        data=plain(DataConfig, "probe", source="files", sequence_length=LENGTH),
        tokenizer=plain(TokenizerConfig, "bpe"),
        optim=plain(
            OptimConfig,
            case.optimizer,  # type: ignore[arg-type]
            learning_rate=3e-3,
            momentum=0.95 if case.optimizer == "muon" else None,
        ),
        schedule=SCHEDULE,
        zero=plain(
            ZeroConfig,
            case.stage,  # type: ignore[arg-type]
            offload_optimizer=case.offload,  # type: ignore[arg-type]
            offload_params=case.offload if case.stage == 3 else "none",  # type: ignore[arg-type]
        ),
        run=plain(RunConfig, seed=SEED),
        train=plain(
            TrainConfig,
            steps=case.steps,
            global_batch=case.batch,
            micro_batch=case.micro_batch,
            precision=case.precision,  # type: ignore[arg-type]
            activation_checkpointing=case.recompute,
        ),
        evaluation=plain(TextEvaluation),
        checkpoint=plain(CheckpointConfig),
        guard=plain(GuardConfig),
        watchdog=plain(WatchdogConfig),
        cluster=plain(ClusterConfig, "local", "local", gpu=gpu),
        tracking=plain(TrackingConfig, "none", uri="none"),
        storage=plain(StorageConfig, "/nowhere"),
    )


def batches(steps: int, batch: int = BATCH) -> np.ndarray:
    """Return tokens [step, row, token] with enough structure to be learned; some rows are short."""
    rng = np.random.default_rng(3)
    start = rng.integers(0, VOCAB, (steps, batch, 1))
    stride = rng.integers(1, 4, (steps, batch, 1))
    return ((start + stride * np.arange(LENGTH + 1)) % VOCAB).astype(np.uint16)


def lengths(steps: int, batch: int = BATCH) -> np.ndarray:
    """Return lengths [step, row], mostly full and sometimes short, so that weighting by tokens matters."""
    rng = np.random.default_rng(4)
    return np.where(rng.random((steps, batch)) < 0.2, LENGTH // 2, LENGTH + 1).astype(np.int32)


def join(rank: int, world: int, port: int, folder: Path, gpu: bool = False) -> WorkerGroup:
    """Join a process group; redirect this process's output to a file in `folder`."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    import torch
    import torch.distributed as dist

    from raymill.driver.worker import send_output_to
    from raymill.engine.device import choose_device, join_deepspeed
    from raymill.engine.group import WorkerGroup

    send_output_to(folder / f"rank-{rank}.log")
    torch.set_num_threads(1)
    device = choose_device(gpu)
    dist.init_process_group("nccl" if gpu else "gloo")
    join_deepspeed(gpu)
    return WorkerGroup(device)


def run_cases(
    rank: int, world: int, port: int, cases: list[Case], folder: Path, gpu: bool = False
) -> None:
    """Train every case in one process group; rank 0 writes `<name>.json` with losses and norms."""
    group = join(rank, world, port, folder, gpu)
    import torch.distributed as dist

    from raymill.checkpoint.commit import commit
    from raymill.checkpoint.fence import raise_fence
    from raymill.checkpoint.manifest import CheckpointManifest
    from raymill.checkpoint.resume import newest_verified
    from raymill.data.store.rows import Rows
    from raymill.engine.group import on_rank_zero
    from raymill.engine.materialize import continue_from
    from raymill.engine.schedule import learning_rate_factor
    from raymill.engine.trainer import Trainer
    from raymill.model.build import plan_model
    from raymill.objective.language_modeling import LanguageModeling

    objective = LanguageModeling(end_of_text_id=0)
    for case in cases:
        job = job_of(case, gpu)
        checkpoints = folder / "checkpoints" / case.name
        found = newest_verified(checkpoints) if case.resume else None
        blueprint = plan_model(job.arch, VOCAB, 0, SEED)
        if found:
            continue_from(blueprint, found.reader())
        trainer = Trainer(job, blueprint, group)
        report: dict[str, object] = {}
        if found:
            reader = found.reader()
            updates = 0 if case.fresh_moments else found.manifest.step
            trainer.load_state(reader, updates, moments=not case.fresh_moments)
            report["identical"] = all(
                not values.any()
                if case.fresh_moments and kind != "fp32"
                else np.array_equal(values, reader.read(kind, name, start, values.size))
                for name, start, arrays in trainer.fragments()
                for kind, values in arrays.items()
            )
        total = case.of or case.steps
        data, length = batches(total, case.batch), lengths(total, case.batch)
        losses, norms = [], []
        share = case.batch // world
        mine = slice(rank * share, (rank + 1) * share)
        for step in range(found.manifest.step if found else 0, case.steps):
            rows = Rows(data[step, mine], length[step, mine])
            tokens = group.sum(objective.weight(rows))[0]
            nats = 0.0
            for first in range(0, share, case.micro_batch):
                trainer.begin_micro_batch(last=first + case.micro_batch >= share)
                part = rows.part(first, first + case.micro_batch)
                loss_sum = objective.losses(trainer.engine, part, group.device).sum()
                nats += float(loss_sum)
                trainer.backward(loss_sum, tokens)
            rate = job.optim.learning_rate * learning_rate_factor(SCHEDULE, step + 1, total)
            norms.append(trainer.update(rate))
            losses.append(group.sum(nats)[0] / tokens)
            if step + 1 == case.save_at:
                manifest = CheckpointManifest(
                    step + 1, (step + 1) * case.batch, 0, world, 1, {}, "", (), "", None, None, {}
                )
                on_rank_zero(group, partial(raise_fence, checkpoints, 0))
                commit(
                    checkpoints, manifest, trainer.checkpoint_layout(), trainer.fragments(), group
                )
                saved = newest_verified(checkpoints)
                assert saved is not None
                report["assembled"] = assembled_by_deepspeed(trainer, saved.reader())
        report.update(losses=losses, norms=norms)
        if rank == 0:
            suffix = "-resumed" if case.resume else ""
            (folder / f"{case.name}{suffix}.json").write_text(json.dumps(report))
        trainer.engine.destroy()
    dist.barrier()
    # Gloo's threads may still be ending; the interpreter's own exit sometimes aborts on them.
    os._exit(0)


def assembled_by_deepspeed(trainer: Trainer, reader: FragmentReader) -> int:
    """Compare a checkpoint with the parameters that DeepSpeed itself assembles of its parts, on all ranks.

    Return how many are equal: all of them, or 0 under ZeRO-0, where there is nothing to assemble.
    """
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    equal = 0
    for parameter, trained in trainer._parameters.items():
        whole = {"fp32": safe_get_full_fp32_param(parameter)}
        if hasattr(parameter, "ds_id"):
            for kind in trained.moments:
                whole[kind] = safe_get_full_optimizer_state(parameter, kind)
        for kind, values in whole.items():
            if values is not None:
                found = reader.tensor(trained.name, kind)
                assert np.array_equal(found, values.float().cpu().numpy().reshape(found.shape))
                equal += 1
    return equal


def spawn(
    world: int, cases: list[Case], folder: Path, gpu: bool = False
) -> dict[str, dict[str, object]]:
    """Run `cases` on `world` processes and return their results."""
    folder.mkdir(parents=True, exist_ok=True)
    run_ranks(run_cases, (world, free_port(), cases, folder, gpu), world, gpu)
    reports = {}
    for case in cases:
        suffix = "-resumed" if case.resume else ""
        reports[case.name] = json.loads((folder / f"{case.name}{suffix}.json").read_text())
    return reports


def resumed(case: Case) -> Case:
    return replace(case, resume=True, save_at=0)
