"""The plan's arithmetic compared with published figures and transformers' own models."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from raymill.config import load
from raymill.engine.optimizers import moments_of, muon_names
from raymill.errors import ConfigError
from raymill.model.build import hugging_face_config
from raymill.objective.preferences import NEEDS_REFERENCE
from raymill.plan.batch import step_tokens, total_steps
from raymill.plan.memory import RUNTIME_BYTES, Memory, job_memory, state_bytes
from raymill.plan.models import WITH_REFERENCE, held_models, moment_bytes
from raymill.plan.node import node_memory
from raymill.plan.parameters import adapter_parameters, count_parameters, flops_per_token
from raymill.plan.report import GIB, pretraining_plan
from raymill.schema.sections import ArchConfig

PUBLISHED = {
    "gpt2_124m": 124_439_808,
    "llama_1b": 1_235_814_400,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama3_8b": 8_030_261_248,
    "llama3_70b": 70_553_706_496,
    "qwen3_0p6b": 596_049_920,
}


@pytest.mark.parametrize("preset", [*PUBLISHED, "nano"])
def test_presets_have_the_published_shapes(preset: str) -> None:
    arch = load("pretrain", [f"arch={preset}"]).arch
    vocabulary = arch.vocab_size or 4096
    count = count_parameters(arch, vocabulary).total
    if preset in PUBLISHED:
        assert count == PUBLISHED[preset]
    model = meta_model(arch, vocabulary)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def meta_model(arch: ArchConfig, vocabulary: int) -> torch.nn.Module:
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(
            hugging_face_config(arch, vocabulary, 0)
        )
    return model


@pytest.mark.parametrize("preset", ["gpt2_124m", "llama_1b", "qwen3_0p6b", "nano"])
def test_muons_moments_are_those_of_the_model(preset: str) -> None:
    job = load("pretrain", [f"arch={preset}", "optim=muon"])
    vocabulary = job.arch.vocab_size or 4096
    count = count_parameters(job.arch, vocabulary)
    model = meta_model(job.arch, vocabulary)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    moments = moments_of(model, job.optim)
    assert moment_bytes(count, "muon") == sum(4 * len(moments[n]) * sizes[n] for n in sizes)
    assert moment_bytes(count, "adamw") == 8 * count.total
    assert count.in_block_matrices == sum(sizes[name] for name in muon_names(model))
    adamw = memory(f"arch={preset}", "zero.stage=1", vocabulary=vocabulary)
    muon = memory(f"arch={preset}", "zero.stage=1", "optim=muon", vocabulary=vocabulary)
    saved = 4 * count.in_block_matrices / 2
    assert adamw.optimizer - muon.optimizer == adamw.copy - muon.copy == saved
    assert 0 < muon.update < 20 * count.in_block_matrices


def memory(
    *overrides: str, vocabulary: int = 4096, workers: int = 2, kind: str = "pretrain"
) -> Memory:
    """Return the plan of a worker, in bf16 unless the overrides say otherwise."""
    job = load(kind, ["train.precision=bf16", *overrides])
    arch = getattr(job, "arch", None) or load("pretrain", []).arch
    return job_memory(job, arch, vocabulary, workers)


def test_zero_memory_is_the_papers() -> None:
    """7.5B parameters on 64 GPUs: 120, 31.4, 16.6, 1.9 GB (Rajbhandari et al. 2020, figure 1)."""
    found = [sum(state_bytes(7_500_000_000, stage, 64, "bf16")) / 1e9 for stage in range(4)]
    assert found == pytest.approx([120, 31.4, 16.6, 1.9], abs=0.06)
    for stage, share in ((0, 1), (1, 1), (2, 64), (3, 64)):  # fp32 sums of micro-batches
        paper, ours = (state_bytes(10**9, stage, 64, "bf16", fp32)[1] for fp32 in (False, True))
        assert (paper, ours) == (2e9 / share, 4e9 / share)


def test_fp32_state() -> None:
    assert sum(state_bytes(1000, 0, 1, "fp32")) == 16_000
    assert sum(state_bytes(1000, 1, 4, "fp32")) == 8_000 + 3_000


def test_offloaded_state_moves_to_the_host() -> None:
    here = memory("zero=stage3")
    away = memory("zero=stage3_offload", "cluster.host_memory_gib=8")
    assert away.host(gpu=True) - here.host(gpu=True) == here.optimizer + here.weights
    assert away.state == here.gradients
    assert here.host(gpu=False) - here.host(gpu=True) == here.device


def test_an_output_matrix_in_fp32_is_counted() -> None:
    hidden = load("pretrain", []).arch.hidden_size
    for precision, elements in (("fp32", 0), ("bf16", 4096 * hidden)):
        both = ["data.path=x", "zero.stage=0", f"train.precision={precision}"]
        plain, wide = (memory(*both, kind=kind, workers=1) for kind in ("reward", "dpo"))
        assert wide.logits - plain.logits == 8 * elements


@pytest.mark.parametrize(
    ("kind", "overrides", "models"),
    [
        ("sft", (), ["model"]),
        ("dpo", (), ["model"]),
        ("dpo", ("loss.reference=live",), ["model", "reference"]),
        ("dpo", ("loss.reference=live", "lora.rank=4"), ["model"]),
        ("rlhf", ("algorithm=grpo",), ["model", "reference"]),
        ("rlhf", ("algorithm=ppo",), ["model", "critic", "reference"]),
    ],
)
def test_every_model_in_a_worker_is_counted(
    kind: str, overrides: tuple[str, ...], models: list[str]
) -> None:
    job = load(kind, ["data.path=x", *overrides] if kind != "rlhf" else list(overrides))
    held = held_models(job, load("pretrain", []).arch, 4096)
    assert [model.name for model in held] == models
    assert held[-1].trained == 0 if models[-1] == "reference" else held[-1].trained > 0


def test_references_are_planned_for_the_losses_that_need_one() -> None:
    assert WITH_REFERENCE == NEEDS_REFERENCE


@pytest.mark.parametrize("family", ["nano", "gpt2_124m"])
@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "up_proj", "c_attn"]])
def test_adapters_are_as_many_as_pefts(family: str, targets: list[str]) -> None:
    arch = load("pretrain", [f"arch={family}", "arch.layers=2"]).arch
    model = meta_model(arch, 300)
    with torch.device("meta"):
        adapted = get_peft_model(
            model,
            LoraConfig(r=4, target_modules="all-linear" if "all-linear" in targets else targets),
        )
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert adapter_parameters(arch, targets, 4) == trained


LARGE = (
    "arch=llama3_70b", "cluster=h100", "run.workers=64", "train.precision=bf16", "train.global_batch=512",
    "train.micro_batch=1", "data.sequence_length=4096", "train.activation_checkpointing=true",
)  # fmt: skip


def test_a_start_of_70b_is_planned_at_its_share() -> None:
    job = load("pretrain", [*LARGE, "zero=stage3"])
    count = count_parameters(job.arch, 128256)
    planned = job_memory(job, job.arch, 128256, 64)
    largest = 4 * 128256 * 8192
    # Weights, gradients, fp32 weights and moments: 18 bytes per parameter.
    assert planned.start - RUNTIME_BYTES == pytest.approx(18 * count.total / 64 + largest)
    node = node_memory(job, job.arch, 128256, 64)
    assert (node.workers, node.export) == (8, 4 * largest + 256 * 2**20)
    assert node.total / GIB < 128


def test_70b_unpartitioned_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError) as refused:
        load("pretrain", [*LARGE, "zero=stage1"])
    assert "one worker needs about 418.0 GiB (start 266.8; step 418.0" in str(refused.value)
    assert "105.4 GiB of host memory" in str(refused.value)
    assert "it fits with zero.stage=3" in str(refused.value)


def test_a_node_without_memory_for_its_workers_is_refused() -> None:
    on_host = ["zero=stage3", "cluster.host_memory_gib=64"]
    with pytest.raises(ConfigError, match=r"a node needs about 105\.4 GiB .*: 8 workers of 13\.1"):
        load("pretrain", [*LARGE, *on_host])
    assert load("pretrain", [*LARGE, *on_host, "cluster.workers_per_node=4"])


def test_flops_of_gpt3() -> None:
    """175B parameters x 300B tokens: 3.14e23 FLOPs as published (6ND)."""
    arch = load("pretrain", ["arch=gpt2_124m", "arch.hidden_size=12288", "arch.layers=96",
                             "arch.heads=96", "arch.kv_heads=96", "arch.intermediate_size=49152",
                             "arch.max_positions=2048"]).arch  # fmt: skip
    total = flops_per_token(arch, 50257, 2048) * 300e9
    assert total == pytest.approx(3.14e23, rel=0.05)


@pytest.mark.parametrize("kind", ["reward", "dpo", "rlhf"])
def test_tokens_are_of_all_sequences_of_a_step(kind: str) -> None:
    """Both answers of a pair count, and every answer of a group with its prompt."""
    sizes = ["data.sequence_length=100", "train.global_batch=16", "train.micro_batch=8"]
    if kind == "rlhf":
        sizes += ["rollout.group_size=4", "rollout.max_new_tokens=28"]
        a_step = 16 * 4 * (100 + 28)
    else:
        sizes += ["data.path=x"]
        a_step = 16 * 2 * 100
    job = load(kind, [*sizes, "train.steps=null", f"train.tokens={7 * a_step - 1}"])
    assert (step_tokens(job), total_steps(job)) == (a_step, 7)


def test_the_plan_spells_out_the_batch() -> None:
    lines = dict(
        pretraining_plan(
            load("pretrain", ["run.workers=2", "train.micro_batch=4", "storage.root=/nowhere"])
        )
    )
    assert lines["batch"] == "32 rows = 2 workers x 4 micro-batch x 4 accumulation"
    assert "8,192,000 = 1,000 steps x 32 rows x 256" in lines["tokens"]
    assert "not prepared yet" in lines["data"]


def mixture_plan(mixture: str) -> dict[str, str]:
    settings = [f"data.mixture={{{mixture}}}", "storage.root=/nowhere"]
    return dict(pretraining_plan(load("pretrain", settings)))


def test_the_plan_tells_the_shares_that_will_be_drawn() -> None:
    lines = mixture_plan("wiki: 1.997, code: 0.003")
    assert "wiki 99.9%, code 0.15% of the samples" in lines["data"]
