"""Refusals of the jobs that align a model, before anything starts, and distribution of a pipeline's keys."""

from __future__ import annotations

import pytest

from raymill.config import load
from raymill.config.stages import deal
from raymill.errors import ConfigError
from raymill.schema.jobs import RankJob


def problems(job: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(job, overrides)
    return "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("job", "overrides", "message"),
    [
        ("reward", [], "data.path: give the compared answers to read"),
        ("dpo", ["data.path=x", "loss.beta=0"], "loss.beta=0.0: must be above 0"),
        ("dpo", ["data.path=x", "loss.label_smoothing=0.5"], "below 0.5"),
        ("dpo", ["data.path=x", "loss.name=dppo"], "loss.name='dppo': expected one of dpo, ipo"),
        ("reward", ["data.path=x", "data=stdlib_chat"], "data=stdlib_chat: data is one of preference"),
        ("rlhf", ["algorithm=grpoo"], "algorithm is one of dr_grpo, grpo, ppo"),
        ("rlhf", ["rollout.group_size=1"], "compares answers to one prompt"),
        ("rlhf", ["algorithm.kl=loss", "algorithm.kl_estimator=k1", "algorithm.kl_coefficient=1"],
         "its expected gradient is zero"),
        ("rlhf", ["algorithm.kl=loss"], "needs algorithm.kl_coefficient above 0"),
        ("rlhf", ["train.micro_batch=7"], "(128 answers per update): isn't workers x micro-batch"),
        ("rlhf", ["algorithm.minibatches=3"], "3 minibatches must divide the prompts"),
        ("rlhf", ["reward.functions={}"], "there is no reward"),
        ("rlhf", ["rollout.staleness=2"], "expected one of 0, 1"),
        ("rlhf", ["rollout.staleness=1", "rollout.actors=0"], "to sample while training"),
        ("rlhf", ["rollout.temperature=0"], "rollout.temperature=0.0: must be above 0"),
        ("rlhf", ["run.from=a@1"], "a fork of this job isn't supported"),
        ("rlhf", ["rollout.top_p=0.9"], "another distribution than the one that is trained"),
        ("rlhf", ["algorithm=ppo", "algorithm.kl_target=1", "algorithm.kl_horizon=9"], "swing to below 0"),
        ("rlhf", ["algorithm=ppo", "algorithm.kl_estimator=k3"], "only k1 has the KL's gradient"),
        ("rlhf", ["lora.rank=4", "lora.dropout=0.05"], "the ratio of the two would be noise"),
        ("reward", ["data.path=x", "train.steps=null", "train.tokens=20000"],
         "less than one global batch of 32768 tokens"),
        ("dpo", ["data.path=x", "loss.name=ipo", "loss.label_smoothing=0.1"], "is for loss.name=dpo"),
        ("rank", ["answers=1"], "answers=1: must be at least 2"),
        ("rank", ["judge=length", "mode=write"], "it can't write"),
        ("rank", ["port=70000"], "must be from 0 to 65535"),
    ],
)  # fmt: skip
def test_what_is_refused(job: str, overrides: list[str], message: str) -> None:
    assert message in problems(job, *overrides)


def test_data_given_by_its_place_alone() -> None:
    assert load("rlhf", ["data.path=p.jsonl"]).data.source == "prompts"
    assert load("rank", ["data.path=p.jsonl"]).data.source == "prompts"
    assert load("rlhf", []).data.source == "stdlib_prompts"


def test_one_set_of_functions_replaces_the_other() -> None:
    job = load("rlhf", ["reward.functions={exact: 1, regex: 0.5}"])
    assert job.reward.functions == {"exact": 1.0, "regex": 0.5}


def test_an_entrys_name_may_hold_anything() -> None:
    entries = ["my.module:brevity=0.5", "http://host:80/judge=2"]
    job = load("rlhf", ["reward.functions={}", *(f"reward.functions.{text}" for text in entries)])
    assert job.reward.functions == {"my.module:brevity": 0.5, "http://host:80/judge": 2.0}


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "dr_grpo", "rloo", "reinforce_pp"])
def test_every_algorithm_loads(algorithm: str) -> None:
    assert load("rlhf", [f"algorithm={algorithm}"]).algorithm.name == algorithm


def test_a_pipeline_deals_its_keys_out() -> None:
    dealt = deal(
        ["experiment=demo", "run.seed=5", "reward.train.steps=9", "rlhf.reward.model=m", "ask=why?",
         "tracking.alias=mine"],
        ["demo", "sft_demo", "rank_demo", "rlhf_demo"],
    )  # fmt: skip
    assert dealt.pretrain == ["experiment=demo", "run.seed=5", "tracking.alias=mine"]
    assert dealt.others["reward"] == ["run.seed=5", "train.steps=9"]
    assert dealt.others["rlhf"] == ["experiment=rlhf_demo", "run.seed=5", "reward.model=m"]
    assert dealt.others["rank"] == ["experiment=rank_demo", "seed=5"]
    assert dealt.ask == ("why?",)


def test_a_pipeline_names_its_stages_and_finds_what_was_ranked() -> None:
    job = load("pipeline", ["storage.root=/s", "run.name=a"])
    assert isinstance(job.rank, RankJob)
    assert (job.rank.name, job.reward.run.name, job.rlhf.run.name) == (
        "a-rank",
        "a-reward",
        "a-rlhf",
    )
    assert job.reward.data.path == ("/s/rankings/a-rank/preferences.parquet",)
