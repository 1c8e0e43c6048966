"""Whole runs of reinforcement learning, without Ray: the invariants that catch silent errors, under every
ZeRO stage, on two ranks, with adapters; exact resume; dumped rollouts replayed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from data.prepared_factory import _write_tokenizer
from engine.alignment_probe import (
    VOCAB,
    assigned,
    events,
    run,
    steps,
    write_judge,
    write_parent,
    write_prompts,
)
from raymill.config import load
from raymill.data.store.manifest import load_prepared
from raymill.driver.finish import _refuse_unchanged
from raymill.engine.resolved_run import ResolvedRun
from raymill.engine.start import resolve_start
from raymill.errors import ConfigError, RaymillError
from raymill.model.build import build_model
from raymill.recipes.registry import recipe_of
from raymill.rl.backend import _engine_spec
from raymill.rl.rollout.record import RolloutRecord, read_rollout, rollout_path
from raymill.rl.rollout.transformers_engine import ModelSpec
from raymill.schema.jobs import RlhfJob

WORDS = [f"{word} {number}" for word in ("say", "tell", "ask me about") for number in range(16)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rl")
    write_parent(root / "parent", hidden=32)
    write_prompts(
        root / "prompts.jsonl",
        [{"prompt": word, "tokens": list(range(97, 123))} for word in WORDS],
    )
    return root


def grpo(root: Path, name: str, *overrides: str, parent: str = "parent") -> ResolvedRun:
    return assigned(
        "rlhf", root / parent, root / "storage", f"data.path={root / 'prompts.jsonl'}",
        "data.sequence_length=48", "data.row_group_rows=4", "data.validation.fraction=0.2",
        "reward.functions={token_share: 1.0}", "rollout.actors=0", "rollout.max_new_tokens=8",
        "rollout.group_size=4", "rollout.batch=8", "train.global_batch=4", "train.micro_batch=4",
        "train.steps=3", "evaluation.rows=4", "evaluation.every=0", "evaluation.batch=4",
        "optim.learning_rate=1e-3", f"run.name={name}", *overrides,
    )  # fmt: skip


KL = ("algorithm.kl=loss", "algorithm.kl_coefficient=0.05")


PPO = ("algorithm=ppo", "algorithm.minibatches=2", "critic.learning_rate=1e-3")
# GRPO with KL under ZeRO 0 to 3, with adapters, and PPO, by AdamW and by Muon.
SETTINGS = {f"zero{stage}": (f"zero=stage{stage}", *KL) for stage in range(4)} | {
    "bf16 zero0": ("zero=stage0", "train.precision=bf16", *KL),
    "bf16 zero3": ("zero=stage3", "train.precision=bf16", *KL),
    "lora": ("zero=stage3", "lora.rank=4", *KL),
    "ppo": ("zero=stage1", *PPO),
    "muon ppo": ("zero=stage1", "optim=muon", *PPO),
    "muon ppo zero2": ("zero=stage2", "optim=muon", *PPO),
}
ALL = {
    1: ("zero0", "lora", "ppo", "muon ppo"),
    2: tuple(name for name in SETTINGS if name != "muon ppo"),
}
# In every run of the tests.
FEW = {1: ("zero0", "lora", "ppo"), 2: ("zero3", "bf16 zero3", "lora", "ppo")}
Runs = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.slow)])
def by_stage(request: pytest.FixtureRequest, place: Path) -> Runs:
    """Return the events of each run, by its number of ranks and its name."""
    which: str = request.param
    found: Runs = {}
    for world, chosen in (FEW if which == "few" else ALL).items():
        cases = {
            f"{world} {name}": grpo(
                place, f"{which}-{name}-{world}".replace(" ", "-"), f"run.workers={world}", *SETTINGS[name]
            )
            for name in chosen
        }  # fmt: skip
        found |= zip(cases, run(list(cases.values()), world), strict=True)
    return found


def test_the_first_step_is_on_policy(by_stage: Runs) -> None:
    for name, found in by_stage.items():
        first = steps(found)[0]
        if "ppo" not in name:  # there the second update of a step isn't any more
            assert first["policy/ratio"] == pytest.approx(1, abs=1e-6), name
            assert abs(first["policy/kl_old"]) < 1e-6, name
            assert first["policy/clip_fraction"] == 0, name
            assert abs(first["policy/kl_reference"]) < 1e-6, name
        assert found[0]["kind"] == "attempt"
        before = next(event for event in found if event["kind"] == "evaluation")
        assert abs(before["prompts/kl"]) < 1e-5, name


def test_the_sampler_is_the_policy_after_every_sync(by_stage: Runs) -> None:
    for name, found in by_stage.items():
        for event in steps(found):
            # With several updates it is measured against π_old, which sampled.
            # In bf16 the cache and the padding of a sampler's batch show.
            most = 1.02 if "bf16" in name else 1.001
            assert 1 - 1e-5 < event["sampler/ratio"] < most, (name, event["step"])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_parents_dropout_doesnt_enter_the_ratio(place: Path, family: str) -> None:
    """Old log-probabilities and values are computed in evaluation mode, new ones in training mode."""
    parent = place / f"dropout-{family}"
    shape = {"layers": 2, "hidden_size": 32, "heads": 4, "kv_heads": 4, "intermediate_size": 64}
    arch = replace(
        load("pretrain", ["experiment=tiny"]).arch, **shape, family=family, head_dim=None,
        max_positions=128, dropout=0.3,
    )  # fmt: skip
    build_model(arch, VOCAB, 0, 1).save_pretrained(parent)
    _write_tokenizer(parent, VOCAB)
    resolved = grpo(place, f"of-{family}", "algorithm=ppo", parent=parent.name)
    recipe = recipe_of(resolved, [load_prepared(folder) for folder in resolved.folders])
    for plan in (recipe.plan_model(fresh=True), recipe.plan_critic(fresh=True)):
        model = plan.whole()
        ids = torch.arange(60).view(2, 30)
        trained, evaluated = model.train()(ids).logits, model.eval()(ids).logits
        assert torch.equal(trained, evaluated)
    config = json.loads((parent / "config.json").read_text())
    dropout = {key: value for key, value in config.items() if "drop" in key and value == 0.3}
    built = recipe.plan_model(fresh=True).model.config.to_dict()
    assert dropout
    assert dropout == {key: built[key] for key in dropout}, (
        "it is still there for whoever trains next"
    )


def test_every_trainable_parameter_learns(by_stage: Runs) -> None:
    for name, found in by_stage.items():
        weights = next(event for event in found if event["kind"] == "weights")
        assert weights["trained"], name
        # Of the embeddings' rows only those that occur; no parameter as a whole stands still.
        assert weights["still"] == [], name


def test_stage_and_world_size_change_nothing(by_stage: Runs) -> None:
    keys = ("train/loss", "train/grad_norm", "rollout/reward", "policy/entropy")
    for group in ("zero", "lora", "ppo", "muon"):
        runs = {
            name: steps(found) for name, found in by_stage.items() if name[2:].startswith(group)
        }
        if group == "muon" and not runs:
            continue
        [(_, reference), *others] = runs.items()
        assert others, "there is something to compare"
        for name, found in others:
            assert [e["sample_ids_sha256"] for e in found] == [
                e["sample_ids_sha256"] for e in reference
            ]
            for ours, theirs in zip(found, reference, strict=True):
                for key in keys:
                    assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-5), (name, key)


def test_the_critic_learns_beside_the_policy(by_stage: Runs) -> None:
    first = steps(by_stage["1 ppo"])[0]
    assert first["critic/loss"] > 0
    assert first["critic/grad_norm"] > 0
    # A new head says 0 of everything, so it explains nothing yet.
    assert first["critic/explained_variance"] == pytest.approx(0, abs=1e-6)


def comparable(event: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in event.items()
        if not key.startswith("perf/") and key not in ("time", "attempt")
    }  # fmt: skip


def test_resume_is_bit_exact(place: Path) -> None:
    """PPO with an adaptive coefficient: policy, critic, moments, β and samplers continue as they were."""
    settings = (
        "algorithm=ppo", "algorithm.kl_target=0.01", "algorithm.kl_horizon=50",
        "algorithm.minibatches=2", "critic.learning_rate=1e-3", "checkpoint.every=2",
    )  # fmt: skip
    [whole] = run([grpo(place, "whole", *settings, "train.steps=5")])
    half = grpo(place, "halves", *settings, "train.steps=2")
    run([half])
    [_] = run([grpo(place, "halves", *settings, "train.steps=5")])
    resumed = steps(events(half))
    assert [event["attempt"] for event in resumed] == [1, 1, 2, 2, 2]
    for ours, theirs in zip(resumed, steps(whole), strict=True):
        assert comparable(ours) == comparable(theirs)
    coefficients = [event["rollout/kl_coefficient"] for event in resumed]
    assert len(set(coefficients)) == 5, "the coefficient adapts"


def test_dumped_rollouts_are_replayed(place: Path) -> None:
    [dumped] = run([grpo(place, "dumped", "rollout.save_to=dumps/a")])
    [replayed] = run([grpo(place, "replayed", "rollout.load_from=dumps/a")])
    for ours, theirs in zip(steps(replayed), steps(dumped), strict=True):
        assert comparable(ours) == comparable(theirs)


def lagging(resolved: ResolvedRun) -> ResolvedRun:
    """Return the run with staleness 1. In one process the next answers are sampled before these are learned
    from, not meanwhile, so that nothing depends on chance."""
    job = resolved.job
    assert isinstance(job, RlhfJob)
    return replace(resolved, job=replace(job, rollout=replace(job.rollout, staleness=1)))


def test_a_lagging_sampler_is_one_update_behind_and_corrected_for(place: Path) -> None:
    [prompt] = run([grpo(place, "prompt", "rollout.save_to=dumps/prompt")])
    [late] = run([lagging(grpo(place, "late", "rollout.save_to=dumps/late"))])
    run([grpo(place, "still", "optim.learning_rate=1e-30", "rollout.save_to=dumps/still")])
    found = {
        name: [dumped(place, name, step) for step in (1, 2, 3)]
        for name in ("prompt", "late", "still")
    }
    versions = {name: [int(one.version[0]) for one in rollouts] for name, rollouts in found.items()}
    assert versions == {"prompt": [0, 1, 2], "late": [0, 0, 1], "still": [0, 1, 2]}
    for one in (found["prompt"][0], found["late"][0]):
        assert same_answers(one, found["still"][0])
    # The second step's answers are the unchanged policy's, though the policy has learned by then.
    assert same_answers(found["late"][1], found["still"][1])
    assert not same_answers(found["prompt"][1], found["still"][1])
    assert [event["sample_ids_sha256"] for event in steps(late)] == [
        event["sample_ids_sha256"] for event in steps(prompt)
    ]
    lags = [event["sampler/ratio"] for event in steps(late)]
    assert lags[0] < 1 + 1e-5 < min(lags[1:])
    assert all(event["sampler/ratio"] < 1 + 1e-5 for event in steps(prompt))


def dumped(root: Path, name: str, step: int) -> RolloutRecord:
    return read_rollout(rollout_path(root / "storage" / "dumps" / name, step))


def same_answers(one: RolloutRecord, other: RolloutRecord) -> bool:
    return all(
        ours.tolist() == theirs.tolist()
        for column in ("answers", "log_probs")
        for ours, theirs in zip(getattr(one, column), getattr(other, column), strict=True)
    )


def test_actors_on_cpus_sample_for_a_trainer_on_gpus(place: Path) -> None:
    on_gpus = (
        "cluster.gpu=true",
        "train.precision=bf16",
        "attention=flash_attention_2",
        "train.steps=1",
    )
    resolved = grpo(place, "flat", *on_gpus, "rollout.actors=1")
    job = resolved.job
    assert isinstance(job, RlhfJob)
    facts = load_prepared(Path(resolved.folders[0]))
    found = {}
    for actors in (0, 1):
        spec = _engine_spec(
            resolved, replace(job, rollout=replace(job.rollout, actors=actors)), facts
        )
        assert isinstance(spec, ModelSpec)
        found[actors] = (spec.gpu, spec.attention)
    assert found == {0: (True, "flash_attention_2"), 1: (False, "sdpa")}


def test_answers_without_a_reward_are_dropped_and_their_cause_is_told_once(place: Path) -> None:
    [found] = run([grpo(place, "dropped", "reward.functions={engine.even_judge\\:judge: 1.0}")])
    told = [event["text"] for event in found if event["kind"] == "message"]
    assert len(told) == 1
    assert "ValueError" in told[0]
    assert all(0 < event["rollout/dropped"] < 16 for event in steps(found))


def test_steps_without_any_reward_change_nothing_and_go_on(place: Path) -> None:
    """The same holds with a critic, whose metrics then have no values to average."""
    function = "reward.functions={engine.even_judge\\:refuse: 1.0}"
    refused = grpo(place, "refused", function, "algorithm=ppo", "algorithm.minibatches=2")
    found, alike = run([refused, grpo(place, "alike", "reward.functions={ended: 0.0}")])
    assert [event["rollout/dropped"] for event in steps(found)] == [16.0] * 3
    assert [event["train/skipped"] for event in steps(found)] == [2] * 3
    weights = next(event for event in found if event["kind"] == "weights")
    assert sorted(weights["still"]) == weights["trained"]
    with pytest.raises(
        RaymillError, match="nothing was learned in 3 steps: 48 answers had no reward"
    ):
        _refuse_unchanged(found)
    with pytest.raises(
        RaymillError, match="in 100% of the groups every answer had the same"
    ) as caught:
        _refuse_unchanged(alike)
    assert "no reward" not in str(caught.value) and "cut off" not in str(caught.value)


@pytest.mark.parametrize(
    ("figures", "said", "unsaid"),
    [
        ({"rollout/dropped": 8.0}, ["8 answers had no reward"], ["same reward", "cut off"]),
        (
            {"rollout/equal_groups": 0.5, "rollout/dropped": 2.0},
            ["2 answers had no", "in 50%"],
            ["cut off"],
        ),
        (
            {"rollout/truncated": 1.0},
            ["100% of the answers were cut", "algorithm.overlong=keep"],
            ["same"],
        ),
    ],
)
def test_why_nothing_was_learned_is_told_by_the_figures(
    figures: dict[str, float], said: list[str], unsaid: list[str]
) -> None:
    with pytest.raises(RaymillError) as caught:
        _refuse_unchanged([{"kind": "step", "step": 1, **figures}], "mask")
    assert all(text in str(caught.value) for text in said)
    assert not any(text in str(caught.value) for text in unsaid)


def test_prompts_without_references_are_found_before_anything_starts(place: Path) -> None:
    """Following the advice, by a column of answers or another function, the run is assigned."""
    for name in ("exact", "contains", "code"):
        with pytest.raises(
            ConfigError, match=rf"reward.functions.{name}: .* none of the 48 prompts has one"
        ):
            grpo(place, "no-reference", f"reward.functions={{{name}: 1.0}}")
    assert grpo(place, "no-reference", "reward.functions={exact: 0.0, ended: 1.0}")
    with pytest.raises(
        ConfigError, match=r"auto: 48 prompts name the verifier exact, .* none of them has"
    ):
        grpo(place, "no-reference", "reward.functions={auto: 1.0}", "data.verifier=exact")
    assert grpo(place, "no-reference", "reward.functions={auto: 1.0}", "data.verifier=ended")
    answered = write_prompts(
        place / "answered.jsonl", [{"prompt": word, "answer": 1} for word in WORDS]
    )
    data = f"data.path={answered}"
    assert grpo(place, "references", data, "reward.functions={exact: 1.0}")
    assert grpo(place, "references", data, "reward.functions={auto: 1.0}", "data.verifier=exact")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["rollout.group_size=2"], "needs: 16, to prompts of samples .* not 8"),
        (["train.global_batch=2", "train.steps=6"], "needs: 16, .* not 8, to samples"),
        (["rollout.temperature=0.5"], "was sampled with .* use its settings"),
    ],
)
def test_other_rollouts_than_the_step_asks_for_are_not_replayed(
    place: Path, change: list[str], message: str
) -> None:
    folder = place / "storage" / "dumps" / "dumped"
    if not folder.exists():
        run([grpo(place, "dumping", "rollout.save_to=dumps/dumped")])
    settings = ["rollout.load_from=dumps/dumped", "train.micro_batch=2", *change]
    with pytest.raises(ProcessRaisedException, match=message):
        run([grpo(place, f"replayed{len(message)}", *settings)])


def test_another_reward_model_under_the_same_name_is_refused_at_resume(place: Path) -> None:
    """A registry's alias that has moved since is refused in the same way."""
    judge = write_judge(place / "parent", place / "judge")
    settings = (f"reward.model={judge}", "reward.model_actors=0", "train.steps=1")
    first = grpo(place, "judged", *settings)
    assert first.rl is not None and set(first.rl.model_digests) == {"reward.model"}
    run([first])
    rl = replace(first.rl, model_digests={"reward.model": "f" * 64})
    again = replace(first, total_steps=2, rl=rl)
    with pytest.raises(ConfigError, match="now resolves to different weights"):
        resolve_start(again, tuple(load_prepared(one).manifest.digest for one in again.folders))
