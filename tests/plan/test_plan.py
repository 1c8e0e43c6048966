"""The plan's arithmetic compared with published figures and transformers' own models."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from raymill.config import load
from raymill.engine.optimizers import moments_of, muon_names
from raymill.model.build import hugging_face_config
from raymill.plan.batch import step_tokens, total_steps
from raymill.plan.memory import moment_bytes, state_bytes, worker_memory
from raymill.plan.parameters import count_parameters, flops_per_token
from raymill.plan.report import pretraining_plan
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
    settings = {"stage": 1, "workers": 2, "precision": "bf16", "micro_batch": 1,
                "sequence_length": 64, "recompute": False}  # fmt: skip
    adamw = worker_memory(job.arch, vocabulary, **settings)
    muon = worker_memory(
        job.arch, vocabulary, **settings, optimizer_name="muon", bucket_elements=10**8
    )
    saved = 4 * count.in_block_matrices / 2
    assert adamw.optimizer - muon.optimizer == adamw.host - muon.host == saved
    assert 0 < muon.update < 20 * count.in_block_matrices


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
    arch = load("pretrain", []).arch
    settings = {"stage": 3, "workers": 2, "precision": "bf16", "micro_batch": 1,
                "sequence_length": 64, "recompute": False}  # fmt: skip
    here = worker_memory(arch, 4096, **settings)
    away = worker_memory(arch, 4096, **settings, offload_optimizer="cpu", offload_params="cpu")
    assert away.host - here.host == here.optimizer + here.weights
    assert away.state == here.gradients


def test_an_output_matrix_in_fp32_is_counted() -> None:
    arch = load("pretrain", []).arch
    settings = {
        "stage": 0,
        "workers": 1,
        "micro_batch": 1,
        "sequence_length": 64,
        "recompute": False,
    }
    for precision, elements in (("fp32", 0), ("bf16", 4096 * arch.hidden_size)):
        plain, wide = (
            worker_memory(arch, 4096, precision=precision, **settings, fp32_head=head).device
            for head in (False, True)
        )
        assert wide - plain == 8 * elements


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
