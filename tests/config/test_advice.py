"""Advice of errors: a user who follows it gets a job that loads, or a next error whose advice helps."""

from __future__ import annotations

import copy
import shlex
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import pytest

from raymill.config import compose, load
from raymill.errors import ConfigError
from raymill.schema.jobs import TrainJob

# Job, overrides, text of the message, and the ways out that it names, each as a user who follows it types it.
DPO = ["data.path=p.jsonl"]
OFFLOAD = ["zero.stage=1", "cluster.host_memory_gib=64"]
FLASH = ["cluster.gpu=true", "train.precision=bf16"]
ADVICE: list[tuple[str, list[str], str, list[list[str]]]] = [
    ("rlhf", ["reward.functions={}"], "there is no reward",
     [["reward.functions.exact=1.0"], ["reward.model=models:/assistant@reward"]]),
    ("rlhf", ["rollout.group_size=1"], "ask for at least 2", [["rollout.group_size=2", "train.micro_batch=1"]]),
    ("rlhf", ["algorithm.kl=loss", "algorithm.kl_estimator=k1", "algorithm.kl_coefficient=1"],
     "use k2, or algorithm.kl=reward",
     [["algorithm.kl_estimator=k2"], ["algorithm.kl=reward"]]),
    ("rlhf", ["algorithm=ppo", "algorithm.kl_estimator=k3"], "use k1, or algorithm.kl=loss",
     [["algorithm.kl_estimator=k1"], ["algorithm.kl=loss"]]),
    ("rlhf", ["algorithm.kl=loss"], "needs algorithm.kl_coefficient above 0",
     [["algorithm.kl_coefficient=0.1"]]),
    ("rlhf", ["algorithm.kl=loss", "algorithm.kl_target=6"],
     "an adaptive coefficient starts at algorithm.kl_coefficient above 0",
     [["algorithm.kl_coefficient=0.1"]]),
    ("rlhf", ["algorithm=ppo", "algorithm.kl_target=1", "algorithm.kl_horizon=9"],
     "must be at least the 128 answers",
     [["algorithm.kl_horizon=128"]]),
    ("rlhf", ["rollout.top_p=0.9"], "use 1", [["rollout.top_p=1"]]),
    ("rlhf", ["rollout.staleness=1", "rollout.actors=0"], "needs rollout.actors of at least 1",
     [["rollout.actors=1"]]),
    ("rlhf", ["rollout.engine=vllm", "rollout.actors=0"], "ask for at least 1", [["rollout.actors=1"]]),
    ("rlhf", ["rollout.engine=vllm", "rollout.actors=1", "rollout.temperature=0.001"],
     "ask for at least that",
     [["rollout.temperature=0.01"]]),
    ("rlhf", ["lora.rank=4", "lora.dropout=0.05"], "use lora.dropout=0", [["lora.dropout=0"]]),
    ("rlhf", ["guard.spike_z=6"], "use guard.spike_z=null", [["guard.spike_z=null"]]),
    ("rlhf", ["guard.policy=rewind"], "use guard.policy=skip", [["guard.policy=skip"]]),
    ("rlhf", ["run.from=a@1"], "give its export as parent", [["run.from=null", "parent=runs/a/export"]]),
    ("rlhf", ["algorithm.minibatches=3"], "must divide the prompts of a step", [["algorithm.minibatches=1"]]),
    ("rlhf", ["train.micro_batch=7"], "micro-batches that fit 1 workers: 8, 16, 32, 64, 128",
     [["train.micro_batch=8"], ["train.micro_batch=128"]]),
    ("dpo", [*DPO, "loss.name=ipo", "loss.label_smoothing=0.1"], "is for loss.name=dpo", [["loss.name=dpo"]]),
    ("rank", ["data.path=p.jsonl", "model=[]"], "name at least one", [["model=a"]]),
    ("rank", ["model=a", "judge=length", "mode=write"], "it can't write (mode=write)",
     [["judge=null"], ["mode=rank"]]),
    ("sft", ["data=chat"], "or choose data=stdlib_chat",
     [["data=stdlib_chat"], ["data.path=conversations.jsonl"]]),
    ("sft", ["data=stdlib_chat", "data.validation.path=held.jsonl"], "these keys are for data.path=",
     [["data=chat", "data.path=a.jsonl"]]),
    ("sft", ["evaluation.questions=9000"], "only data.questions=", [["data.questions=9000"]]),
    ("sft", ["lora.targets=[]"], "or all-linear",
     [["lora.targets=all-linear"], ["lora.targets=[q_proj,v_proj]"]]),
    ("sft", ["optim=muon", "lora.rank=8"], "use optim=adamw, or lora.rank=0",
     [["optim=adamw"], ["lora.rank=0"]]),
    ("sft", ["attention=flash_attention_2", "train.precision=bf16"], "needs cluster.gpu=true; use sdpa",
     [["cluster.gpu=true"], ["attention=sdpa"]]),
    ("sft", ["attention=flash_attention_2", "cluster.gpu=true", "train.precision=fp32"],
     "set train.precision=bf16, or attention=sdpa",
     [["train.precision=bf16"], ["attention=sdpa"]]),
    ("pretrain", ["data=files"], "as in data.path=texts/", [["data.path=texts/"]]),
    ("pretrain", ["optim.momentum=0.9"], "choose optim=muon, or leave it out",
     [["optim=muon"], ["optim.momentum=null"]]),
    ("pretrain", ["optim=muon", "optim.momentum=null"], "0.95 is usual", [["optim.momentum=0.95"]]),
    ("pretrain", ["arch.hidden_size=100", "arch.heads=3", "arch.kv_heads=3"],
     "choose a divisor, or give arch.head_dim",
     [["arch.heads=4", "arch.kv_heads=4"], ["arch.head_dim=32"]]),
    ("pretrain", ["tokenizer.vocab_size=4096", "arch.vocab_size=2048"], "set arch.vocab_size=null",
     [["arch.vocab_size=null"], ["tokenizer.vocab_size=2048"]]),
    ("pretrain", ["data.validation.fraction=0"], "(or give data.validation.path)",
     [["data.validation.fraction=0.1"], ["data=files", "data.path=a", "data.validation.path=b"]]),
    ("pretrain", ["train.steps=100", "train.tokens=1000000"], "give exactly one of them (the other null)",
     [["train.tokens=null"], ["train.steps=null"]]),
    ("pretrain", ["train.precision=fp32", "train.reduce_precision=bf16"],
     "use train.reduce_precision=fp32, or train.precision=bf16",
     [["train.reduce_precision=fp32"], ["train.precision=bf16"]]),
    ("pretrain", [*OFFLOAD, "zero.offload_optimizer=nvme"], "use zero.offload_optimizer=cpu",
     [["zero.offload_optimizer=cpu"]]),
    ("pretrain", [*OFFLOAD, "zero.offload_optimizer=cpu", "zero.stage=0"], "needs zero.stage of 1 to 3",
     [["zero.stage=1"], ["zero.stage=3"]]),
    ("pretrain", [*OFFLOAD, "zero.offload_params=cpu"], "needs zero.stage=3", [["zero.stage=3"]]),
    ("pretrain", ["zero.stage=3", "zero.offload_params=nvme"], "needs zero.stage=3 and the folder",
     [["zero.nvme_path=/nvme"]]),
    ("pretrain", ["zero.stage=1", "zero.offload_optimizer=cpu"], "as in cluster.host_memory_gib=512",
     [["cluster.host_memory_gib=512"]]),
    ("pretrain", ["run.workers=5..7", "train.global_batch=8"],
     "change train.micro_batch or train.global_batch",
     [["train.global_batch=12", "train.micro_batch=2"]]),
    ("pretrain", ["run.workers=3", "train.global_batch=8", "train.micro_batch=1"],
     "no micro-batch fits 3 workers; change run.workers or train.global_batch",
     [["run.workers=4"], ["train.global_batch=9"]]),
    ("pretrain", ["run.from=base"], "as in base@1000", [["run.from=base@1000"]]),
    ("pretrain", ["run.from=base@10", "model=folder"], "a fork brings its own weights",
     [["model=null"], ["run.from=null"]]),
    ("pretrain", ["schedule.warmup_steps=50", "train.steps=50"], "must be below train.steps=50",
     [["schedule.warmup_steps=49"]]),
    ("chat", ["prompt=a", "prompt_file=b", "model=m"], "give one", [["prompt"], ["prompt_file"]]),
    ("chat", ["chat=false", "system=b", "model=m"], "leave one of them out", [["chat=true"]]),
    ("audit", [], "as in run.name=demo", [["run.name=demo"]]),
    ("prepare", ["kind=chats"], "did you mean chat?", [["kind=chat", "data.path=a.jsonl"]]),
    ("sft", ["train.step=30"], "did you mean train.steps?", [["train.steps=30", "train.step"]]),
    ("rlhf", ["algorithm=gpro"], "did you mean grpo?", [["algorithm=grpo"]]),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def composed_once() -> Iterator[None]:
    """Hydra's part of a load takes most of its time, and depends on the choices of groups alone."""
    known: dict[tuple[str, ...], Any] = {}
    real = compose._compose

    def cached(job: str, chosen: Sequence[str]) -> Any:
        key = (job, *chosen)
        if key not in known:
            known[key] = real(job, chosen)
        return copy.deepcopy(known[key])

    with patch.object(compose, "_compose", cached):
        yield


def problems_of(job: str, overrides: Sequence[str]) -> list[str]:
    try:
        load(job, overrides)
    except ConfigError as error:
        return list(error.problems)
    return []


def followed(overrides: Sequence[str], advice: Sequence[str]) -> list[str]:
    """Return the command with the advised settings in place of its own for the same keys."""
    keys = {text.partition("=")[0] for text in advice}
    kept = [text for text in overrides if text.partition("=")[0] not in keys]
    return [*kept, *(text for text in advice if "=" in text)]


@pytest.mark.parametrize(
    ("job", "overrides", "message", "ways"), ADVICE, ids=[a[2] for a in ADVICE]
)
def test_every_way_that_an_error_names_leads_out(
    job: str, overrides: list[str], message: str, ways: list[list[str]]
) -> None:
    problems = problems_of(job, overrides)
    assert any(message in text for text in problems), problems
    for way in ways:
        left = problems_of(job, followed(overrides, way))
        assert not left, (way, left)


MAPPINGS = [
    "{exact: 1.0", "exact: 1.0", "exact", "[exact]", "{exact=1}", "{my.r:b: 0.5}", "{http://h/x?y=1&z=2: 1.0}",
    "{exact: 1.0, my.r:short: -0.5}", "{http://h/(x): 1.0}",
]  # fmt: skip
LISTS = [
    "[a(1).txt]",
    "[a, b",
    "[/x/{a}.txt, b c]",
    "[it's]",
    '[say "a".txt, (b)]',
    r"[C:\x\{a}.txt]",
]


@pytest.mark.parametrize("raw", MAPPINGS)
def test_a_mapping_that_cannot_be_read_is_spelled_so_that_it_can(raw: str) -> None:
    """Read the proposed overrides as a shell would."""
    [problem] = problems_of("rlhf", [f"reward.functions={raw}"])
    overrides = shlex.split(problem.partition(", as in ")[2])
    job = load("rlhf", overrides)
    assert job.reward.functions == {name: float(value) for name, value in _typed(overrides).items()}


def _typed(overrides: Sequence[str]) -> dict[str, str]:
    pairs = [text.removeprefix("reward.functions.").rpartition("=") for text in overrides[1:]]
    return {name: value for name, _, value in pairs}


@pytest.mark.parametrize("raw", LISTS)
def test_a_list_that_cannot_be_read_is_spelled_so_that_it_can(raw: str) -> None:
    problem = problems_of("sft", [f"data.path={raw}"])[0]
    [override] = shlex.split(problem.partition(", as in ")[2])
    expected = [item.strip() for item in raw.removeprefix("[").removesuffix("]").split(",")]
    assert list(load("sft", [override]).data.path) == expected


GPT2 = ["arch=gpt2_124m", "train.global_batch=8"]
MEMORY = [
    [*GPT2, "train.micro_batch=8", "cluster.device_memory_gib=4"],
    [*GPT2, "train.micro_batch=8", "cluster.device_memory_gib=3"],
    [*GPT2, "train.micro_batch=8", "cluster.device_memory_gib=2.5"],
    [*GPT2, "train.micro_batch=1", "run.workers=4", "cluster.device_memory_gib=1.6"],
    [*GPT2, "train.micro_batch=8", "cluster.device_memory_gib=1.6"],
]


@pytest.mark.parametrize("overrides", MEMORY)
def test_what_is_said_to_fit_into_memory_fits(overrides: list[str]) -> None:
    [problem] = problems_of("pretrain", overrides)
    assert "it fits with " in problem
    for way in problem.partition("it fits with ")[2].split(" or "):
        assert not problems_of("pretrain", followed(overrides, way.split())), way


def test_what_fits_into_no_memory_is_said() -> None:
    overrides = ["arch=gpt2_124m", "train.global_batch=8", "cluster.device_memory_gib=0.01"]
    [problem] = problems_of("pretrain", overrides)
    assert "it doesn't fit with train.micro_batch=1" in problem and "on 8 workers" in problem
    assert isinstance(load("pretrain", overrides[:2]), TrainJob)
