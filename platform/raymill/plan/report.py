"""The plan of a training job as text, which `dry_run=true` prints."""

from __future__ import annotations

from collections.abc import Mapping

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
from raymill.plan.memory import job_memory
from raymill.plan.models import held_models
from raymill.plan.node import node_memory
from raymill.plan.parameters import count_parameters, flops_per_token
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
    """Return the plan as lines of (topic, text)."""
    vocabulary = job.arch.vocab_size or job.tokenizer.vocab_size
    return [*_computation(job, job.arch, vocabulary), *_locations(job, _text_data(job))]


def fine_tuning_plan(
    job: ParentJob, parent: str, arch: ArchConfig | None, vocab_size: int, data: str
) -> list[tuple[str, str]]:
    """Return the plan as lines of (topic, text).

    `arch` is the parent's if its shape is known; `vocab_size` includes the tokens that the chat template adds.
    """
    lines = [("parent", parent)]
    if arch is not None:
        vocabulary = max(vocab_size, arch.vocab_size or 0)
        lines += _computation(job, arch, vocabulary)
    if isinstance(job, RlhfJob):
        lines += roles_plan(job, arch, vocab_size)
    if job.lora.rank:
        lines.append(("adapters", f"rank {job.lora.rank} on {', '.join(job.lora.targets)}"))
    return [*lines, *_locations(job, data)]


def _computation(job: TrainJob, arch: ArchConfig, vocabulary: int) -> list[tuple[str, str]]:
    count = count_parameters(arch, vocabulary)
    train, length = job.train, job.forward_length
    # The smallest number of workers, which hold the most each.
    workers = allowed_workers(job)[0]
    # Answers of RL may be shorter than planned, so the tokens are an upper bound there.
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
            f"{tokens / count.total:.1f} per parameter",
        ),
        (
            "batch",
            f"{rows_per_update(job):,} {_samples(job)} = {workers} workers x {train.micro_batch} "
            f"micro-batch x {accumulation} accumulation{_other_sizes(job)}",
        ),
        (
            "compute",
            f"{total_flops:.3g} FLOPs, {per_token:.3g} per token{_duration(job, total_flops)}",
        ),
        ("memory", memory_plan(job, arch, vocabulary)),
        ("checkpoint", _checkpoint(job, arch, vocabulary)),
    ]


def _checkpoint(job: TrainJob, arch: ArchConfig, vocabulary: int) -> str:
    size = sum(4 * model.trained + model.moments for model in held_models(job, arch, vocabulary))
    moments = "two moments"
    if job.optim.name == "muon":
        moments += ", one of the blocks' matrices"
    return f"{size / GIB:.2f} GiB each (fp32 weights and {moments})"


def _samples(job: TrainJob) -> str:
    noun = job.row_unit
    if isinstance(job, RlhfJob):
        return f"{noun} per update, to {job.train.global_batch:,} prompts per step"
    return noun


def roles_plan(
    job: RlhfJob, arch: ArchConfig | None, vocab_size: int, hosts: tuple[str, str] = ("", "")
) -> list[tuple[str, str]]:
    """Return lines of (topic, text) for the models of reinforcement learning other than the policy.

    They have each model's place and memory. `hosts`: those of the samplers and of the reward models, once
    known.
    """
    rollout, reward = job.rollout, job.reward
    weights = "its weights"
    if arch is not None:
        count = count_parameters(arch, max(vocab_size, arch.vocab_size or 0)).total
        gib = count * (4 if job.train.precision == "fp32" else 2) / GIB
        weights = f"{gib:.2f} GiB of weights"
    on_samplers, on_rewards = (f" on {host}" if host else "" for host in hosts)
    whole = "partitioned over the workers" if job.zero.stage == 3 else "on every worker"
    reference = (
        "the policy with its adapters switched off"
        if job.lora.rank
        else f"{weights} {whole}, forward only"
    )
    lines = [("reference", reference)]
    if job.algorithm.advantage == "gae":
        lines.append(("critic", "in the workers, with memory and checkpoints like the policy's"))
    resources = f"{rollout.cpus_per_actor:g} CPUs, {rollout.gpus_per_actor:g} GPUs"
    samplers = (
        f"{rollout.actors} actors of {resources}{on_samplers}, {weights} each and a cache of "
        f"{rollout.batch} answers"
        if rollout.actors
        else f"inside the first worker, {weights}"
    )
    rewards = [f"{len(reward.functions)} functions in {reward.workers} processes"]
    if reward.model is not None:
        rewards.append(
            f"{reward.model} in {reward.model_actors} actors of {resources}{on_rewards}"
            if reward.model_actors
            else f"{reward.model} inside the first worker"
        )
    return [*lines, ("samplers", f"{rollout.engine}, {samplers}"), ("judges", "; ".join(rewards))]


def _other_sizes(job: TrainJob) -> str:
    others = ", ".join(map(str, allowed_workers(job)[1:]))
    return f"; or {others} workers, as capacity allows" if others else ""


def _duration(job: TrainJob, flops: float) -> str:
    peak = job.cluster.peak_tflops
    if peak is None:
        return "; set cluster.peak_tflops for an estimate of the time"
    hours = flops / (peak * 1e12 * job.run.most * ASSUMED_MFU) / 3600
    return (
        f"; about {hours:,.1f} h at {ASSUMED_MFU:.0%} of {job.run.most} x {peak:g} TFLOP/s "
        f"({hours * job.run.most:,.0f} device hours)"
    )


def memory_plan(job: TrainJob, arch: ArchConfig, vocabulary: int) -> str:
    """Return a worker's memory by moment and purpose, and its node's, as text."""
    workers = allowed_workers(job)[0]
    memory = job_memory(job, arch, vocabulary, workers)
    node = node_memory(job, arch, vocabulary, workers)
    parts = (
        f"{memory.device / GIB:.2f} GiB per worker: start {memory.start / GIB:.2f}, step "
        f"{memory.step / GIB:.2f} (weights {memory.weights / GIB:.2f}, gradients "
        f"{memory.gradients / GIB:.2f}, optimizer {memory.optimizer / GIB:.2f}, buffers "
        f"{memory.buffers / GIB:.2f}, activations {memory.activations / GIB:.2f}, logits "
        f"{memory.logits / GIB:.2f})"
    )
    if memory.update:
        parts += (
            f"; {memory.update / GIB:.2f} for Muon's update, after activations and logits are freed"
        )
    if job.cluster.device_memory_gib is not None:
        parts += f" (of {job.cluster.device_memory_gib:g} GiB)"
    parts += (
        f"; host {node.total / GIB:.2f} GiB per node: {node.workers} workers of {node.each / GIB:.2f} "
        f"(copy for checkpoints {memory.copy / GIB:.2f}, offloaded {memory.offloaded / GIB:.2f}), later an "
        f"export of {node.export / GIB:.2f}"
    )
    if job.cluster.host_memory_gib is not None:
        parts += f" (of {job.cluster.host_memory_gib:g} GiB)"
    return f"{parts}; ZeRO {job.zero.stage}, {job.train.precision}"


def _text_data(job: PretrainJob) -> str:
    root = job.storage.folder
    folder = prepared_folder(job.data, job.tokenizer, job.run.seed, root)
    state = "prepared" if is_finished(folder) else "not prepared yet"
    return f"{folder} ({state})"


def _locations(job: TrainJob, data: str) -> list[tuple[str, str]]:
    root = job.storage.folder
    if job.data.mixture:
        data = drawn_shares(job.data.mixture)
    run_dir = root / "runs" / str(job.run.name)
    state = "exists: it would resume" if is_folder(run_dir) else "new"
    # A plan does no network I/O, so an object store isn't asked whether it has the run.
    if job.storage.uri is not None:
        state = f"kept in {job.storage.uri}"
    # The address may contain a password, which is redacted below.
    tracking = {None: sqlite_address(root / "mlflow.db"), "none": "off"}.get(
        job.tracking.uri, job.tracking.uri
    )
    return [
        ("data", data),
        ("run", f"{run_dir} ({state})"),
        ("tracking", redacted_value(f"{tracking}")),
        ("registers", f"models:/{job.tracking.registered_model}@{job.tracking.alias}")
        if job.tracking.register
        else ("registers", "nothing"),
    ]


def drawn_shares(mixture: Mapping[str, float]) -> str:
    """Return each source's share of the samples, as in `wiki 70%, code 30% of the samples`."""
    total = sum(mixture.values())
    shares = (f"{name} {_percent(weight / total)}" for name, weight in mixture.items())
    return f"{', '.join(shares)} of the samples"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
