"""The plan of a worker's memory compared with measured peaks: start, step and checkpoint copy of two-rank runs.

    .venv/bin/python bench/scale/plan.py [--cases pretrain-0 dpo-live-3 …] [--json FILE]

Each case is a real run of two processes (gloo) on this machine: the models are made, two optimizer steps are
taken, and the training state is copied as for a checkpoint. Numbers are peaks of rank 0's resident memory, over
that after its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]

WORLD = 2
STEPS = 2
VOCAB = 8192
LENGTH = 128
GIB = 2**30
MODELS = {
    "small": ("arch=llama_1b", "arch.hidden_size=512", "arch.layers=8", "arch.heads=8", "arch.kv_heads=4",
              "arch.head_dim=64", "arch.intermediate_size=1536"),
    "large": ("arch=llama_1b", "arch.hidden_size=1024", "arch.layers=8", "arch.heads=16", "arch.kv_heads=8",
              "arch.head_dim=64", "arch.intermediate_size=3072"),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A job and a model; `gib` are the weights, gradients and moments of the whole model."""

    name: str
    kind: str
    model: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Peaks:
    """Bytes at each moment over what a worker takes after its imports."""

    start: float
    step: float
    copy: float


CASES = [
    *(
        Case(f"pretrain-{stage}", "pretrain", "small", (f"zero.stage={stage}",))
        for stage in range(4)
    ),
    *(
        Case(f"pretrain-bf16-{stage}", "pretrain", "small", (f"zero.stage={stage}", "train.precision=bf16"))
        for stage in range(4)
    ),
    *(
        Case(f"pretrain-large-{stage}", "pretrain", "large", (f"zero.stage={stage}",))
        for stage in (1, 3)
    ),
    *(Case(f"sft-{stage}", "sft", "small", (f"zero.stage={stage}",)) for stage in (0, 3)),
    *(
        Case(f"lora-{stage}", "sft", "large", (f"zero.stage={stage}", "lora.rank=16"))
        for stage in (0, 3)
    ),
    *(
        Case(f"dpo-live-{stage}", "dpo", "small", (f"zero.stage={stage}", "loss.reference=live"))
        for stage in (1, 3)
    ),
]  # fmt: skip


def job_of(case: Case) -> tuple[Any, Any]:
    """Return the case's job and its model's shape."""
    from raymill.config import load

    model = [*MODELS[case.model], "arch.tied_embeddings=false", f"arch.vocab_size={VOCAB}"]
    arch = load("pretrain", [*model, "tokenizer.vocab_size=300"]).arch
    settings = [
        f"data.sequence_length={LENGTH}", "train.global_batch=8", "train.micro_batch=4", f"run.workers={WORLD}",
        "storage.root=/nowhere", *case.overrides,
    ]  # fmt: skip
    if case.kind == "pretrain":
        settings += [*model, "tokenizer.vocab_size=300"]
    if case.kind == "dpo":
        settings += ["data.path=x", "train.global_batch=4", "train.micro_batch=2"]
    return load(case.kind, settings), arch


def planned(case: Case) -> Peaks:
    """Return the plan's numbers for a worker on the CPU."""
    from raymill.plan.memory import job_memory

    job, arch = job_of(case)
    memory = job_memory(job, arch, VOCAB, WORLD)
    return Peaks(memory.start, memory.step, memory.step + memory.copy)


def measure(case: Case, folder: Path) -> Peaks:
    """Run the case in processes of its own and return rank 0's peaks."""
    from engine.ranks import run_ranks
    from servers import free_port

    result = folder / f"{case.name}.json"
    run_ranks(_rank, (free_port(), case, folder, result), WORLD)
    return Peaks(**json.loads(result.read_text()))


def _rank(rank: int, port: int, case: Case, folder: Path, result: Path) -> None:
    from engine.probe import join

    group = join(rank, WORLD, port, folder)
    import torch.distributed as dist

    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    from raymill.engine.checkpoints import HostCopy
    from raymill.engine.trainer import Trainer

    job, arch = job_of(case)
    rows = _rows(case.kind, job)
    dist.barrier()
    base = _resident("VmRSS")
    _reset_peak()
    trainer = Trainer(job, _blueprint(case, job, arch, folder), group)
    _fill_moments(trainer)
    objective = _objective(case, job, arch, folder, trainer.model, group)
    start = _resident("VmHWM") - base
    _reset_peak()
    for _ in range(STEPS):
        weight = group.sum(objective.weight(rows))[0]
        for first in range(0, len(rows), job.train.micro_batch):
            last = first + job.train.micro_batch >= len(rows)
            trainer.begin_micro_batch(last=last)
            part = rows.part(first, first + job.train.micro_batch)
            trainer.backward(objective.losses(trainer.engine, part, group.device).sum(), weight)
        trainer.update(1e-4)
    step = _resident("VmHWM") - base
    _reset_peak()
    copy = HostCopy()
    copy.take([trainer])
    if rank == 0:
        # The copy stays, so that it is there in every later step.
        copied = sum(buffer.nbytes for buffer in copy._buffers.values())
        peaks = Peaks(start, step, max(_resident("VmHWM") - base, step + copied))
        result.write_text(json.dumps(asdict(peaks)))
    dist.barrier()
    os._exit(0)


def _fill_moments(trainer: Any) -> None:
    """Give the moments memory, as a resumed run has it before its first step."""
    for owned in trainer._updated():
        for kind in owned.parameter.moments:
            owned.moment(trainer.optimizer, kind).fill_(0.0)


def _blueprint(case: Case, job: Any, arch: Any, folder: Path) -> Any:
    from raymill.model.build import plan_model
    from raymill.model.parent import plan_parent, with_adapters

    if case.kind == "pretrain":
        return plan_model(arch, VOCAB, 0, 1)
    blueprint = plan_parent(folder / case.model, VOCAB, (), "sdpa", 1)
    return with_adapters(blueprint, job.lora, (), 1) if job.lora.rank else blueprint


def _objective(case: Case, job: Any, arch: Any, folder: Path, model: Any, group: Any) -> Any:
    from raymill.engine.reference import FrozenModel, LiveReference
    from raymill.engine.trainer import freeze_for_inference
    from raymill.objective.language_modeling import AssistantTokens, LanguageModeling
    from raymill.objective.pairs import PreferredAnswers

    if case.kind == "pretrain":
        return LanguageModeling(0)
    head = model.get_output_embeddings()
    if case.kind == "sft":
        return AssistantTokens(head)
    frozen = freeze_for_inference(job, _blueprint(case, job, arch, folder), group)
    reference = LiveReference(FrozenModel(frozen, adapters_off=False), group.device)
    loss = job.loss
    return PreferredAnswers(head, loss.name, loss.beta, loss.label_smoothing, loss.gamma, reference)


def _rows(kind: str, job: Any) -> Any:
    """Return this rank's rows of a step, full of random tokens."""
    import numpy as np

    from raymill.data.store.rows import Rows

    count = job.train.global_batch // WORLD
    width = LENGTH * (2 if kind == "dpo" else 1) + (kind != "dpo")
    tokens = np.random.default_rng(0).integers(1, VOCAB, (count, width)).astype(np.uint16)
    length = np.full(count, width, dtype=np.int32)
    if kind == "pretrain":
        return Rows(tokens, length)
    weight = np.ones((count, width), dtype=np.float32)
    segment = np.zeros((count, width), dtype=np.uint16)
    if kind == "sft":
        return Rows(tokens, length, weight=weight, segment=segment)
    segment[:, LENGTH:] = 1
    return Rows(
        tokens, length, weight=weight, segment=segment, record=np.arange(count),
        margin=np.zeros(count, dtype=np.float32),
    )  # fmt: skip


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _write_parents(cases: list[Case], folder: Path) -> None:
    from raymill.model.build import plan_model

    for case in cases:
        if case.kind != "pretrain" and not (folder / case.model).exists():
            _, arch = job_of(case)
            plan_model(arch, VOCAB, 0, 1).whole().save_pretrained(folder / case.model)


def rows_of(cases: list[Case]) -> Iterator[dict[str, Any]]:
    """Yield each case's plan and measurement."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_parents(cases, folder)
        for case in cases:
            yield {
                "case": case.name,
                "planned": asdict(planned(case)),
                "measured": asdict(measure(case, folder)),
            }


def main() -> None:
    """Print a table of all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", default=[case.name for case in CASES])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    moments = ("start", "step", "copy")
    print("| run | " + " | ".join(f"{m} planned | measured" for m in moments) + " |")
    for row in rows_of([case for case in CASES if case.name in options.cases]):
        cells = [
            f"{row['planned'][m] / GIB:.3f} | {row['measured'][m] / GIB:.3f} "
            f"({row['planned'][m] / row['measured'][m] - 1:+.0%})"
            for m in moments
        ]
        print(f"| {row['case']} | {' | '.join(cells)} |", flush=True)
        found.append(row)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
