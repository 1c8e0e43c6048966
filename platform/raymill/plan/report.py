"""The plan of a training job in words: what `dry_run=true` prints."""

from __future__ import annotations

from rich.console import Console

from raymill.data.store.location import prepared_folder
from raymill.data.store.manifest import is_finished
from raymill.plan.batch import (
    accumulation_steps,
    allowed_workers,
    rows_per_update,
    step_rows,
    step_tokens,
    total_steps,
)
from raymill.plan.flops import flops_per_token
from raymill.plan.memory import job_memory, moment_bytes
from raymill.plan.mixture import drawn_shares, rounding_warnings
from raymill.plan.parameters import ParameterCount, count_parameters
from raymill.reading import is_folder
from raymill.redaction import redacted_value
from raymill.schema.jobs import ParentJob, PretrainJob, RlhfJob, TrainJob
from raymill.schema.sections import ArchConfig
from raymill.schema.storage import sqlite_address

ASSUMED_MFU = 0.4  # published large runs reach 0.38 to 0.55
GIB = 2**30


def print_plan(lines: list[tuple[str, str]]) -> None:
    """Print a resolved plan; nothing is started or written."""
    console = Console()
    for name, text in lines:
        console.print(f"{name:<14}{text}", soft_wrap=True, highlight=False, markup=False)


def pretraining_plan(job: PretrainJob) -> list[tuple[str, str]]:
    """(topic, text) lines of the plan."""
    vocabulary = job.arch.vocab_size or job.tokenizer.vocab_size
    return [*_computation(job, job.arch, vocabulary), *_places(job, _text_data(job))]


def fine_tuning_plan(
    job: ParentJob, parent: str, arch: ArchConfig | None, vocab_size: int, data: str
) -> list[tuple[str, str]]:
    """(topic, text) lines; `arch` is the parent's where its shape is known, `vocab_size` with the tokens
    that the chat template adds. Adapters are planned as if all weights were trained: an upper bound."""
    lines = [("parent", parent)]
    if arch is not None:
        vocabulary = max(vocab_size, arch.vocab_size or 0)
        lines += _computation(job, arch, vocabulary)
    if isinstance(job, RlhfJob):
        lines += roles_plan(job, arch, vocab_size)
    if job.lora.rank:
        bound = f"rank {job.lora.rank} on {', '.join(job.lora.targets)}"
        lines.append(("adapters", f"{bound}; memory and checkpoints above are upper bounds"))
    return [*lines, *_places(job, data)]


def _computation(job: TrainJob, arch: ArchConfig, vocabulary: int) -> list[tuple[str, str]]:
    count = count_parameters(arch, vocabulary)
    train, length = job.train, job.forward_length
    workers = allowed_workers(job)[0]  # which have the most to hold each
    rows, steps = step_rows(job), total_steps(job)
    tokens = steps * step_tokens(job)
    per_token = flops_per_token(arch, vocabulary, length)
    total_flops = per_token * tokens
    accumulation = accumulation_steps(job, workers)
    return [
        (
            "parameters",
            f"{count.total:,} ({arch.name}: {count.embedding:,} embedding, {count.blocks:,} "
            f"blocks, {count.head:,} output), vocabulary {vocabulary:,}",
        ),
        (
            "tokens",
            f"{tokens:,} = {steps:,} steps x {rows:,} rows x {length:,}"
            f"{' at most' if rows != train.global_batch else ''}; "
            f"{tokens / count.total:.1f} a parameter",
        ),
        (
            "batch",
            f"{rows_per_update(job):,} {_samples(job)} = {workers} workers x {train.micro_batch} "
            f"micro-batch x {accumulation} accumulation{_other_sizes(job)}",
        ),
        (
            "compute",
            f"{total_flops:.3g} FLOPs, {per_token:.3g} a token{_duration(job, total_flops)}",
        ),
        ("memory", memory_plan(job, arch, vocabulary)),
        ("checkpoint", _checkpoint(job, count)),
    ]


def _checkpoint(job: TrainJob, count: ParameterCount) -> str:
    size = 4 * count.total + moment_bytes(count, job.optim.name)
    moments = "two moments"
    if job.optim.name == "muon":
        moments += ", one of the blocks' matrices"
    return f"{size / GIB:.2f} GiB each (fp32 weights and {moments})"


def _samples(job: TrainJob) -> str:
    unit = job.row_unit
    if isinstance(job, RlhfJob):
        return f"{unit} an update, to {job.train.global_batch:,} prompts a step"
    return unit


def roles_plan(
    job: RlhfJob, arch: ArchConfig | None, vocab_size: int, hosts: tuple[str, str] = ("", "")
) -> list[tuple[str, str]]:
    """(topic, text) lines: who sits where in reinforcement learning, with how much memory, beside the policy
    in the workers. `hosts`: of the samplers and of the reward models, once they are known."""
    rollout, reward = job.rollout, job.reward
    weights = "its weights"
    if arch is not None:
        count = count_parameters(arch, max(vocab_size, arch.vocab_size or 0)).total
        gib = count * (4 if job.train.precision == "fp32" else 2) / GIB
        weights = f"{gib:.2f} GiB of weights"
    on_samplers, on_judges = (f" on {host}" if host else "" for host in hosts)
    whole = "shared out over the workers" if job.zero.stage == 3 else "on every worker"
    reference = (
        "the policy with its adapters switched off"
        if job.lora.rank
        else f"{weights} {whole}, forward only"
    )
    lines = [("reference", reference)]
    if job.algorithm.advantage == "gae":
        lines.append(("critic", "in the workers, with memory and checkpoints like the policy's"))
    each = f"{rollout.cpus_per_actor:g} CPUs, {rollout.gpus_per_actor:g} GPUs"
    samplers = (
        f"{rollout.actors} actors of {each}{on_samplers}, {weights} each and a cache of "
        f"{rollout.batch} answers"
        if rollout.actors
        else f"inside the first worker, {weights}"
    )
    judges = [f"{len(reward.functions)} functions in {reward.workers} processes"]
    if reward.model is not None:
        judges.append(
            f"{reward.model} in {reward.model_actors} actors of {each}{on_judges}"
            if reward.model_actors
            else f"{reward.model} inside the first worker"
        )
    return [*lines, ("samplers", f"{rollout.engine}, {samplers}"), ("judges", "; ".join(judges))]


def _other_sizes(job: TrainJob) -> str:
    others = ", ".join(map(str, allowed_workers(job)[1:]))
    return f"; or {others} workers, as there is room" if others else ""


def _duration(job: TrainJob, flops: float) -> str:
    peak = job.cluster.peak_tflops
    if peak is None:
        return "; how long depends on cluster.peak_tflops, which isn't set"
    hours = flops / (peak * 1e12 * job.run.most * ASSUMED_MFU) / 3600
    return (
        f"; about {hours:,.1f} h at {ASSUMED_MFU:.0%} of {job.run.most} x {peak:g} TFLOP/s "
        f"({hours * job.run.most:,.0f} device hours)"
    )


def memory_plan(job: TrainJob, arch: ArchConfig, vocabulary: int) -> str:
    """What a worker needs, by what it is for."""
    memory = job_memory(job, arch, vocabulary, allowed_workers(job)[0])
    parts = (
        f"{memory.device / GIB:.2f} GiB a worker: weights {memory.weights / GIB:.2f}, gradients "
        f"{memory.gradients / GIB:.2f}, optimizer {memory.optimizer / GIB:.2f}, activations "
        f"{memory.activations / GIB:.2f}, logits {memory.logits / GIB:.2f}"
    )
    if memory.update:
        parts += (
            f"; {memory.update / GIB:.2f} for Muon's update, when activations and logits are gone"
        )
    if job.cluster.device_memory_gib is not None:
        parts += f" (of {job.cluster.device_memory_gib:g} GiB)"
    parts += f"; {memory.host / GIB:.2f} GiB of host memory"
    return f"{parts}; ZeRO {job.zero.stage}, {job.train.precision}"


def _text_data(job: PretrainJob) -> str:
    root = job.storage.folder
    folder = prepared_folder(job.data, job.tokenizer, job.run.seed, root)
    state = "prepared" if is_finished(folder) else "not prepared yet"
    return f"{folder} ({state})"


def _places(job: TrainJob, data: str) -> list[tuple[str, str]]:
    root = job.storage.folder
    if job.data.mixture:
        data = drawn_shares(job.data.mixture)
    run_dir = root / "runs" / str(job.run.name)
    state = "exists: it would resume" if is_folder(run_dir) else "new"
    if job.storage.uri is not None:  # which isn't asked
        state = f"kept in {job.storage.uri}"
    tracking = {None: sqlite_address(root / "mlflow.db"), "none": "off"}.get(
        job.tracking.uri, job.tracking.uri
    )
    return [
        ("data", data),
        *(("warning", text) for text in rounding_warnings(job.data.mixture)),
        ("run", f"{run_dir} ({state})"),
        ("tracking", redacted_value(f"{tracking}")),
        ("registers", f"models:/{job.tracking.registered_model}@{job.tracking.alias}")
        if job.tracking.register
        else ("registers", "nothing"),
    ]
