"""Runs whole alignment jobs without Ray: real recipes, learners, samplers and judges, in processes of
their own; only the stream of rows is read here instead of by Ray Data."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data.in_process import without_ray
from data.prepared_factory import _write_tokenizer
from data.preparing import prepare
from engine.probe import join
from engine.ranks import run_ranks
from raymill.checkpoint.fence import raise_fence
from raymill.config import load
from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.engine.resolved_run import ResolvedRun
from servers import free_port

VOCAB = 257  # bytes and the end of text; the chat template adds two tokens
ADDED = 2


def write_parent(folder: Path, *, layers: int = 2, hidden: int = 64, seed: int = 1) -> Path:
    """An untrained model with a tokenizer of bytes."""
    from raymill.model.build import build_model
    from raymill.model.loading import silence_libraries

    silence_libraries()
    arch = load("pretrain", ["experiment=tiny"]).arch
    arch = replace(
        arch, layers=layers, hidden_size=hidden, heads=4, kv_heads=2, head_dim=None,
        intermediate_size=2 * hidden, max_positions=128,
    )  # fmt: skip
    build_model(arch, VOCAB, 0, seed).save_pretrained(folder)
    _write_tokenizer(folder, VOCAB)
    return folder


def write_judge(parent: Path, folder: Path) -> Path:
    """A reward model that has learned nothing."""
    from raymill.model.parent import load_scalar_model

    load_scalar_model(parent, VOCAB + ADDED, [], "sdpa", 5, pad_id=0)[0].save_pretrained(folder)
    chat_tokenizer(parent, "auto", ()).save(folder)
    return folder


def write_prompts(path: Path, records: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def assigned(kind: str, parent: Path, root: Path, *overrides: str) -> ResolvedRun:
    """A job as the driver hands it to its workers; its data is prepared here."""
    from raymill.driver.reward_resolution import check_reference_answers, resolve_rewards
    from raymill.driver.tuning_resolution import Parent, resolve_tuning
    from raymill.track.registry import ResolvedModel

    job = load(
        kind,
        [f"parent={parent}", f"storage.root={root}", "tracking=none", "schedule=constant",
         "schedule.warmup_steps=0", *overrides],
    )  # fmt: skip
    tokenizer = chat_tokenizer(parent, job.data.template, job.data.special_tokens)
    with without_ray():
        prepared = prepare(job.preparation(), tokenizer)
    start = Parent(ResolvedModel(parent, str(parent)), tokenizer)
    rl = resolve_rewards(job, start) if kind == "rlhf" else None
    if kind == "rlhf":
        check_reference_answers(job, [prepared.folder])
    resolved = resolve_tuning(job, start, {prepared.folder: 1.0}, rl=rl)
    raise_fence(resolved.checkpoints, resolved.token)
    return resolved


@dataclass(frozen=True)
class DirectStream:
    """A rank's rows in the same order as through Ray Data."""

    spec: Any
    rank: int

    def open(self) -> None:
        """Nothing is read ahead."""

    def __iter__(self) -> Iterator[Any]:
        from raymill.data.store.reader import RowReader
        from raymill.data.store.rows import Rows
        from raymill.data.store.stream import StepBatch

        for step in range(self.spec.steps):
            sample, located = self.spec.rank_samples(step, 1, self.rank)
            rows: Rows = RowReader(self.spec.folders).read(located)
            yield StepBatch(sample, located.source, rows)


def run(assignments: Sequence[ResolvedRun], world: int = 1) -> list[list[dict[str, Any]]]:
    """Run each on `world` processes, one after the other in the same ones; their journals' events."""
    folder = assignments[0].run_dir
    (folder / "assignments.pickle").write_bytes(pickle.dumps(list(assignments)))
    run_ranks(_work, (world, free_port(), folder), world)
    return [events(one) for one in assignments]


def events(resolved: ResolvedRun) -> list[dict[str, Any]]:
    lines = resolved.event_log.read_text().splitlines()
    return [json.loads(line) for line in lines]


def steps(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in found if event["kind"] == "step"]


def _work(rank: int, world: int, port: int, folder: Path) -> None:
    group = join(rank, world, port, folder)
    import numpy as np
    import torch.distributed as dist

    from raymill.data.store.stream import StreamSpec
    from raymill.driver import worker
    from raymill.engine.event_log import EventLog
    from raymill.engine.group import WorkerGroup
    from raymill.engine.heartbeat import Heartbeat

    def stream(resolved: ResolvedRun, order: Any, start: Any, group: WorkerGroup) -> Any:
        batch = resolved.job.train.global_batch
        spec = StreamSpec(
            resolved.folders, order, group.world_size, start.samples,
            resolved.total_steps * batch,
        )  # fmt: skip
        return DirectStream(spec, group.rank)

    worker.open_stream = stream  # type: ignore[assignment]
    worker._peak_of_all = lambda resolved, group: 1e12
    for resolved in pickle.loads((folder / "assignments.pickle").read_bytes()):
        event_log = EventLog(resolved.event_log) if rank == 0 else None
        loop = worker.build_loop(resolved, group, event_log, Heartbeat(resolved.pulses, rank))
        trainers = [learner.trainer for learner in loop.learners]

        def weights(trainers: list[Any] = trainers) -> dict[str, Any]:
            return {n: a["fp32"].copy() for t in trainers for n, _, a in t.fragments()}

        before = weights()
        loop.run()
        after = weights()
        still = [name for name in before if np.array_equal(before[name], after[name])]
        if event_log is not None:
            event_log.write("weights", loop.step, still=still, trained=sorted(before))
            event_log.close()
        for trainer in trainers:
            trainer.engine.destroy()
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # Gloo's threads may still be ending
