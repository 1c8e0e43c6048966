"""Checks that span several keys, before any resource is claimed. Every check is pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import singledispatch
from typing import Any

from raymill.config.alignment_checks import (
    preference_tuning,
    ranking,
    reinforcement,
    reward_modelling,
)
from raymill.config.audit_checks import audit_problems
from raymill.config.corpus_checks import corpus_problems, quality_problems, tokenizer_problems
from raymill.config.memory_check import memory_problems
from raymill.config.ranges import above, at_least, fraction, safe_name
from raymill.config.run_checks import run_problems
from raymill.config.serve_checks import serving
from raymill.plan.mixture import mixture_problems
from raymill.schema.chat import ChatJob
from raymill.schema.data_sections import (
    ChatConfig,
    DataConfig,
    PreferenceConfig,
    PromptsConfig,
    RowsConfig,
)
from raymill.schema.jobs import (
    AuditJob,
    ChatPrepareJob,
    DpoJob,
    ParentJob,
    PreferencePrepareJob,
    PrepareJob,
    PretrainJob,
    PromptsPrepareJob,
    RankJob,
    RewardJob,
    RlhfJob,
    SftJob,
    TrainJob,
)
from raymill.schema.sections import (
    ArchConfig,
    ClusterConfig,
    LoraConfig,
    TextEvaluation,
    TrackingConfig,
)
from raymill.schema.serving import ServeJob
from raymill.schema.storage import input_problems


@singledispatch
def check(job: Any) -> list[str]:
    """Return every contradiction in `job`, one line each."""
    raise TypeError(f"no checks for {type(job).__name__}")


@check.register
def _(job: PrepareJob) -> list[str]:
    return [
        *_text(job.data),
        *tokenizer_problems(job.tokenizer),
        *_cluster(job.cluster),
        *at_least("preview", job.preview, 0),
        *at_least("core_hour_price", job.core_hour_price, 0),
    ]


@check.register(ChatPrepareJob)
@check.register(PreferencePrepareJob)
@check.register(PromptsPrepareJob)
def _(job: ChatPrepareJob | PreferencePrepareJob | PromptsPrepareJob) -> list[str]:
    return [
        *_messages(job.data),
        *_cluster(job.cluster),
        *_tracking(job.tracking),
        *at_least("preview", job.preview, 0),
    ]


check.register(quality_problems)


@check.register
def _(job: AuditJob) -> list[str]:
    return audit_problems(job)


@check.register
def _(job: ChatJob) -> list[str]:
    return [
        *at_least("max_new_tokens", job.max_new_tokens, 1),
        *at_least("temperature", job.temperature, 0),
        *fraction("top_p", job.top_p, positive=True),
        *_tracking(job.tracking),
        *(
            ["prompt and prompt_file are both set: give one"]
            if job.prompt is not None and job.prompt_file is not None
            else []
        ),
        *(
            [
                "system: chat=false continues text, which has no system message; leave one of them out"
            ]
            if job.chat is False and job.system is not None
            else []
        ),
        *(
            ["api_key: it is for url=, which isn't set; leave it out, or give the server's address"]
            if job.api_key is not None and job.url is None
            else []
        ),
    ]


@check.register
def _(job: PretrainJob) -> list[str]:
    problems = [
        *_text(job.data),
        *tokenizer_problems(job.tokenizer),
        *_arch(job.arch),
        *_training(job),
        *_sampling(job.evaluation),
        *_fresh_model(job),
    ]
    # The memory of a plan can only be estimated if its settings are valid.
    return problems or _fits(job)


@check.register
def _(job: SftJob) -> list[str]:
    return [
        *_from_parent(job),
        *at_least("evaluation.questions", job.evaluation.questions, 0),
        *(
            [
                f"evaluation.questions={job.evaluation.questions}: only data.questions="
                f"{job.data.questions} are kept when data is prepared"
            ]
            if job.evaluation.questions > job.data.questions
            else []
        ),
        *at_least("evaluation.answer_every", job.evaluation.answer_every, 0),
        *at_least("evaluation.answer_tokens", job.evaluation.answer_tokens, 1),
        *at_least("neftune_alpha", job.neftune_alpha, 0),
    ]


@check.register
def _(job: RewardJob) -> list[str]:
    return [*_from_parent(job), *reward_modelling(job)]


@check.register
def _(job: DpoJob) -> list[str]:
    return [*_from_parent(job), *preference_tuning(job)]


@check.register
def _(job: RlhfJob) -> list[str]:
    return [*_from_parent(job), *reinforcement(job)]


@check.register
def _(job: RankJob) -> list[str]:
    return [*_messages(job.data), *_tracking(job.tracking), *ranking(job)]


@check.register
def _(job: ServeJob) -> list[str]:
    return [*_tracking(job.tracking), *serving(job)]


def _from_parent(job: ParentJob) -> Iterator[str]:
    yield from _messages(job.data)
    yield from _training(job)
    yield from _lora(job.lora)
    yield from _attention("attention", job.attention, job)
    if job.run.from_ is not None:
        yield "run.from: a fork of this job isn't supported; give its export as parent"


def _training(job: TrainJob) -> Iterator[str]:
    yield from _cluster(job.cluster)
    yield from _tracking(job.tracking)
    yield from _optimizer(job)
    yield from _zero(job)
    yield from _precision(job)
    yield from run_problems(job)


def _text(data: DataConfig) -> Iterator[str]:
    yield from _rows(data)
    yield from corpus_problems(data)
    if data.source == "files" and not (data.path or data.sources or data.mixture):
        yield "data.path: data=files needs the folders or globs to read, as in data.path=texts/"


def _messages(data: RowsConfig) -> Iterator[str]:
    """Check data made of messages, of any kind."""
    yield from _rows(data)
    embedded: tuple[str, ...]
    if isinstance(data, ChatConfig):
        yield from at_least("data.pack_window", data.pack_window, 1)
        yield from at_least("data.questions", data.questions, 0)
        what, embedded = "conversations", ("stdlib_chat", "demo_chat")
    elif isinstance(data, PromptsConfig):
        what, embedded = "prompts", ("stdlib_prompts", "demo_prompts")
    else:
        assert isinstance(data, PreferenceConfig), f"{type(data).__name__} has no kind of messages"
        what, embedded = "compared answers", ()
    if data.source in embedded and (
        data.validation.path is not None or data.validation.group_column is not None
    ):
        yield (
            f"data.validation.path, data.validation.group_column: the embedded {what} are held "
            "out by function; these keys are for data.path=…"
        )
    if data.source not in embedded and not data.path and not data.mixture:
        choice = f", or choose data={embedded[0]}" if embedded else ""
        yield f"data.path: give the {what} to read, as in data.path={what.split()[0]}.jsonl{choice}"


def _lora(lora: LoraConfig) -> Iterator[str]:
    yield from at_least("lora.rank", lora.rank, 0)
    yield from above("lora.alpha", lora.alpha, 0)
    if not 0 <= lora.dropout < 1:
        yield f"lora.dropout={lora.dropout}: must be at least 0 and below 1"
    if not lora.targets:
        yield "lora.targets: name the modules to adapt, or all-linear"


def _attention(key: str, attention: str, job: TrainJob) -> Iterator[str]:
    if attention != "flash_attention_2":
        return
    if not job.cluster.gpu:
        yield f"{key}=flash_attention_2: needs cluster.gpu=true; use sdpa on a CPU"
    if job.train.precision == "fp32":
        yield (
            f"{key}=flash_attention_2, train.precision=fp32: its kernels compute only in 16 bits; set "
            f"train.precision=bf16, or {key}=sdpa"
        )


def _rows(data: RowsConfig) -> Iterator[str]:
    yield from safe_name("data.name", data.name)
    yield from at_least("data.sequence_length", data.sequence_length, 2)
    # Rows of messages have no size that is known before.
    least = 0 if isinstance(data, DataConfig) else 1
    yield from at_least("data.row_group_rows", data.row_group_rows, least)
    yield from at_least("data.window_row_groups", data.window_row_groups, 1)
    yield from at_least("data.shard_input_bytes", data.shard_input_bytes, 1024)
    yield from fraction("data.max_bad_fraction", data.max_bad_fraction)
    if data.validation.path is None and not 0 < data.validation.fraction < 1:
        yield (
            f"data.validation.fraction={data.validation.fraction}: must be between 0 and 1 "
            "(or give data.validation.path)"
        )
    for key, patterns in (("path", data.path), ("validation.path", data.validation.path)):
        for pattern in patterns or ():
            yield from input_problems(f"data.{key}", pattern)
    yield from mixture_problems(data)


def _cluster(cluster: ClusterConfig) -> Iterator[str]:
    yield from at_least("cluster.cpus_per_worker", cluster.cpus_per_worker, 0)
    yield from at_least("cluster.workers_per_node", cluster.workers_per_node, 1)
    for key in ("device_memory_gib", "host_memory_gib", "peak_tflops"):
        yield from above(f"cluster.{key}", getattr(cluster, key), 0)


def _tracking(tracking: TrackingConfig) -> Iterator[str]:
    yield from safe_name("tracking.registered_model", tracking.registered_model)
    yield from safe_name("tracking.alias", tracking.alias)
    if re.fullmatch(r"v\d+|latest", tracking.alias):
        yield f"tracking.alias={tracking.alias}: the registry keeps v<number> and latest for itself"
    yield from at_least("tracking.flush_timeout_s", tracking.flush_timeout_s, 0)


def _arch(arch: ArchConfig) -> Iterator[str]:
    for key in ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "max_positions"):
        yield from at_least(f"arch.{key}", getattr(arch, key), 1)
    # The checks below divide by these sizes.
    if min(arch.hidden_size, arch.heads, arch.kv_heads) < 1:
        return
    if arch.head_dim is None and arch.hidden_size % arch.heads:
        yield (
            f"arch.heads={arch.heads}: doesn't divide arch.hidden_size={arch.hidden_size}; "
            "choose a divisor, or give arch.head_dim"
        )
    if arch.heads % arch.kv_heads:
        yield f"arch.kv_heads={arch.kv_heads}: must divide arch.heads={arch.heads}"
    if arch.family == "gpt2" and (arch.kv_heads != arch.heads or arch.head_dim is not None):
        yield "arch.kv_heads, arch.head_dim: gpt2 has as many key heads as heads, and no own head_dim"
    if not 0 <= arch.dropout < 1:
        yield f"arch.dropout={arch.dropout}: must be at least 0 and below 1"


def _fresh_model(job: PretrainJob) -> Iterator[str]:
    yield from _attention("arch.attention", job.arch.attention, job)
    if job.run.from_ is not None and job.model is not None:
        yield "run.from and model are both set: a fork brings its own weights"
    if job.data.sequence_length > job.arch.max_positions:
        yield (
            f"data.sequence_length={job.data.sequence_length}: longer than "
            f"arch.max_positions={job.arch.max_positions} of arch={job.arch.name}"
        )
    wanted = job.tokenizer.vocab_size if job.tokenizer.path is None else None
    if wanted is not None and job.arch.vocab_size is not None and wanted > job.arch.vocab_size:
        yield (
            f"tokenizer.vocab_size={wanted}: larger than arch.vocab_size={job.arch.vocab_size}; "
            "make it smaller, or set arch.vocab_size=null to take the tokenizer's"
        )


def _optimizer(job: TrainJob) -> Iterator[str]:
    optim, schedule = job.optim, job.schedule
    yield from above("optim.learning_rate", optim.learning_rate, 0)
    yield from above("optim.eps", optim.eps, 0)
    yield from at_least("optim.weight_decay", optim.weight_decay, 0)
    yield from at_least("optim.grad_clip", optim.grad_clip, 0)
    for key in ("beta1", "beta2"):
        if not 0 <= getattr(optim, key) < 1:
            yield f"optim.{key}={getattr(optim, key)}: must be at least 0 and below 1"
    yield from _muon(job)
    yield from at_least("schedule.warmup_steps", schedule.warmup_steps, 0)
    yield from fraction("schedule.decay_fraction", schedule.decay_fraction)
    yield from fraction("schedule.final_fraction", schedule.final_fraction)
    if job.train.steps is not None and schedule.warmup_steps >= job.train.steps > 0:
        yield (
            f"schedule.warmup_steps={schedule.warmup_steps}: must be below "
            f"train.steps={job.train.steps}"
        )


def _muon(job: TrainJob) -> Iterator[str]:
    momentum = job.optim.momentum
    if job.optim.name != "muon":
        if momentum is not None:
            yield (
                f"optim.momentum={momentum}: is Muon's; choose optim=muon, or leave it out: AdamW has "
                "optim.beta1"
            )
        return
    if momentum is None or not 0 <= momentum < 1:
        yield f"optim.momentum={momentum}: Muon needs one of at least 0 and below 1; 0.95 is usual"
    if isinstance(job, ParentJob) and job.lora.rank > 0:
        yield (
            f"optim.name=muon, lora.rank={job.lora.rank}: adapters are trained by AdamW, which leaves "
            "Muon nothing; use optim=adamw, or lora.rank=0"
        )


def _zero(job: TrainJob) -> Iterator[str]:
    zero, cluster = job.zero, job.cluster
    yield from at_least("zero.bucket_elements", zero.bucket_elements, 1)
    if zero.offload_optimizer != "none" and zero.stage == 0:
        yield f"zero.offload_optimizer={zero.offload_optimizer}: needs zero.stage of 1 to 3"
    if zero.offload_params != "none" and zero.stage != 3:
        yield f"zero.offload_params={zero.offload_params}: needs zero.stage=3, not {zero.stage}"
    if zero.offload_optimizer == "nvme":
        # DeepSpeed leaves tensors without elements behind (swap_tensor/optimizer_utils.py, `release_memory`).
        yield (
            "zero.offload_optimizer=nvme: optimizer state that DeepSpeed has swapped out can neither be "
            "checkpointed nor resumed; use zero.offload_optimizer=cpu, or more workers for zero.stage=3 to "
            "share it out over"
        )
    if zero.offload_params == "nvme" and (zero.nvme_path is None or zero.stage != 3):
        yield "zero.nvme_path: offloading to NVMe needs zero.stage=3 and the folder to write to"
    if "cpu" in (zero.offload_optimizer, zero.offload_params) and cluster.host_memory_gib is None:
        yield (
            "cluster.host_memory_gib: offloading to the host needs to know how much memory a node "
            "has, as in cluster.host_memory_gib=512"
        )


def _precision(job: TrainJob) -> Iterator[str]:
    if job.train.precision == "fp32" and job.train.reduce_precision != "fp32":
        yield (
            f"train.reduce_precision={job.train.reduce_precision}: with train.precision=fp32 gradients are "
            "fp32, and would only be rounded on their way; use train.reduce_precision=fp32, or "
            "train.precision=bf16"
        )


def _sampling(evaluation: TextEvaluation) -> Iterator[str]:
    yield from at_least("evaluation.sample_every", evaluation.sample_every, 0)
    yield from at_least("evaluation.sample_tokens", evaluation.sample_tokens, 1)
    yield from at_least("evaluation.temperature", evaluation.temperature, 0)
    yield from fraction("evaluation.top_p", evaluation.top_p, positive=True)


def _fits(job: PretrainJob) -> list[str]:
    return memory_problems(job, job.arch, job.arch.vocab_size or job.tokenizer.vocab_size)
