"""Alignment learns, from three fixed seeds: GRPO from one of them in `make test`, the rest by `make learn`.

Bars are far from what the untrained policy reaches; with shuffled rewards nothing may be learned.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from data.chat_factory import write_jsonl
from engine.alignment_probe import assigned, events, run, steps, write_parent, write_prompts
from learn.warm import warm_up
from raymill.checkpoint.resume import newest_verified
from raymill.data.messages.folder import load_chat_encoder
from raymill.driver.exports import export_checkpoint
from raymill.engine.resolved_run import ResolvedRun
from raymill.generate.batch import complete

SEEDS = (1, 2, 3)
EVERY_SEED = tuple(pytest.param(seed, marks=pytest.mark.learn) for seed in SEEDS)
LETTERS = list(range(97, 123))  # token ids of a byte-level vocabulary: an arbitrary tenth of it
COMMON = (
    "data.sequence_length=48", "data.validation.fraction=0.2", "rollout.actors=0",
    "evaluation.every=0", "checkpoint.every=1000", "evaluation.batch=64",
)  # fmt: skip


def held_out(found: list[dict[str, Any]], key: str = "prompts/reward") -> tuple[float, float]:
    """Return the value before training and after it."""
    values = [event[key] for event in found if event["kind"] == "evaluation"]
    return values[0], values[-1]


ALGORITHMS = ("ppo", "grpo", "rloo", "reinforce_pp")
SHUFFLED = "shuffled"
OWN = {
    name: (
        f"algorithm={name}",
        "reward.functions={token_share: 1.0}",
        *(["algorithm.kl_coefficient=0.001"] if name != "grpo" else []),
    )
    for name in ALGORITHMS
} | {
    SHUFFLED: (
        "reward.functions={}",
        "reward.functions.token_share=0",
        "reward.functions.learn.noise:noise=1",
        "train.steps=24",
    )
}
Risen = Callable[[int, str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def risen(tmp_path_factory: pytest.TempPathFactory) -> Risen:
    """Events of an untrained policy that learns to say tokens of a set, by a seed and an algorithm; SHUFFLED
    learns by GRPO from rewards that have nothing to do with its answers, the real ones being just reported."""

    @cache
    def place(seed: int) -> Path:
        root = tmp_path_factory.mktemp(f"share-{seed}")
        write_parent(root / "parent", hidden=32)
        records = [{"prompt": f"say {number}", "tokens": LETTERS} for number in range(100)]
        write_prompts(root / "prompts.jsonl", records)
        return root

    def learned(seed: int, name: str) -> list[dict[str, Any]]:
        root = place(seed)
        case = assigned(
            "rlhf", root / "parent", root / "storage", f"data.path={root / 'prompts.jsonl'}",
            *COMMON, "rollout.max_new_tokens=10", "rollout.group_size=8", "rollout.batch=64",
            "train.global_batch=8", "train.micro_batch=32", "train.steps=36", "evaluation.rows=20",
            "optim.learning_rate=5e-3", "critic.learning_rate=5e-3", f"run.seed={seed}",
            *OWN[name], f"run.name={name}",
        )  # fmt: skip
        [found] = run([case])
        return found

    return learned


@pytest.mark.parametrize(
    ("seed", "algorithm"),
    [
        pytest.param(*case, marks=() if case == (1, "grpo") else pytest.mark.learn)
        for case in product(SEEDS, ALGORITHMS)
    ],
)
def test_a_programmatic_reward_rises(risen: Risen, seed: int, algorithm: str) -> None:
    """The share of tokens in a set: about 0.1 for the untrained policy; 0.4 is the bar."""
    found = risen(seed, algorithm)
    before, after = held_out(found)
    distance = held_out(found, "prompts/kl")[1]
    print(f"\n{algorithm} seed {seed}: {before:.3f} → {after:.3f}, KL {distance:.2f}")
    assert before < 0.2
    assert after > 0.4


@pytest.mark.parametrize("seed", EVERY_SEED)
def test_nothing_is_learned_from_shuffled_rewards(risen: Risen, seed: int) -> None:
    before, after = held_out(risen(seed, SHUFFLED), "prompts/reward/token_share")
    print(f"\nshuffled seed {seed}: {before:.3f} → {after:.3f}")
    assert abs(after - before) < 0.15


@pytest.fixture(scope="module", params=EVERY_SEED)
def adder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    """A nano model that was taught sums by a teacher who is off by one half of the time."""
    seed: int = request.param
    root = tmp_path_factory.mktemp(f"sums-{seed}")
    parent = write_parent(root / "parent", hidden=64, seed=seed)
    drawn = random.Random(seed)

    def conversation() -> tuple[str, str]:
        a, b = drawn.randrange(10), drawn.randrange(10)
        return f"{a}+{b}", str(a + b + drawn.randrange(2))

    warm_up(parent, conversation, steps=250, seed=seed)
    write_prompts(
        root / "prompts.jsonl",
        [{"prompt": f"{a}+{b}", "answer": str(a + b)} for a in range(10) for b in range(10)],
    )
    return root, seed


def test_sums_are_learned_from_a_verifier(adder: tuple[Path, int]) -> None:
    """Held-out prompts, answers sampled as in training: at least 20 points more are right."""
    root, seed = adder
    own = {"grpo": (), "ppo": ("algorithm.kl_coefficient=0.001",)}
    cases = [
        assigned(
            "rlhf", root / "parent", root / "storage", f"data.path={root / 'prompts.jsonl'}",
            *COMMON, "reward.functions={exact: 1.0}", "rollout.max_new_tokens=4",
            "rollout.group_size=8", "rollout.batch=128", "train.global_batch=16",
            "train.micro_batch=64", "train.steps=40", f"algorithm={name}",
            "data.validation.fraction=0.35", "optim.learning_rate=5e-4",
            "critic.learning_rate=2e-3", f"run.seed={seed}", *more,
            f"run.name={name}",
        )
        for name, more in own.items()
    ]  # fmt: skip
    gained = {}
    for name, found in zip(own, run(cases), strict=True):
        training = [event["rollout/reward"] for event in steps(found)]
        before, after = held_out(found)
        gained[name] = after - before
        print(
            f"\nsums, {name} seed {seed}: held out {before:.2f} → {after:.2f}, training "
            f"{sum(training[:3]) / 3:.2f} → {sum(training[-3:]) / 3:.2f}"
        )
    assert min(gained.values()) >= 0.2, gained


SAID = "abcdefgh12345678"


def worth(text: str) -> int:
    """The rule by which answers are compared: letters are better than digits."""
    return sum(letter.isalpha() for letter in text)


@pytest.fixture(scope="module", params=EVERY_SEED)
def compared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, ResolvedRun, ResolvedRun]:
    """A parent that says letters and digits at random; DPO and a reward model trained on pairs."""
    seed: int = request.param
    root = tmp_path_factory.mktemp(f"pairs-{seed}")
    parent = write_parent(root / "parent", hidden=32, seed=seed)
    drawn = random.Random(seed)

    def answer() -> str:
        return "".join(drawn.choice(SAID) for _ in range(8))

    warm_up(parent, lambda: (f"say {drawn.randrange(100)}", answer()), steps=60, seed=seed)
    pairs = []
    for number in range(400):
        worse, better = sorted((answer(), answer()), key=worth)
        if worth(worse) < worth(better):
            pairs.append({"prompt": f"say {number}", "chosen": better, "rejected": worse})
    write_jsonl(root / "pairs.jsonl", pairs)
    shared = (
        f"data.path={root / 'pairs.jsonl'}", "data.sequence_length=64", "data.row_group_rows=8",
        "data.validation.fraction=0.2", "train.global_batch=16", "train.micro_batch=16",
        "train.steps=40", "evaluation.every=0", "checkpoint.every=1000", f"run.seed={seed}",
    )  # fmt: skip
    dpo = assigned(
        "dpo", parent, root / "storage", *shared, "optim.learning_rate=1e-3", "run.name=dpo"
    )
    reward = assigned(
        "reward", parent, root / "storage", *shared, "optim.learning_rate=3e-3", "run.name=reward"
    )
    run([dpo, reward])
    for trained in (dpo, reward):
        found = newest_verified(trained.checkpoints)
        assert found is not None
        export_checkpoint(trained, found)
    return root, seed, dpo, reward


def test_preferences_are_learned(compared: tuple[Path, int, ResolvedRun, ResolvedRun]) -> None:
    """DPO raises the held-out accuracy of log π alone, and its answers are better by the rule; the reward
    model ranks held-out pairs."""
    root, seed, dpo, reward = compared
    first = steps(events(dpo))[0]
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-4), "policy is reference"
    before, after = held_out(events(dpo), "pairs/policy/log_prob_accuracy")
    ranked = held_out(events(reward), "pairs/reward/accuracy")
    said = [mean_worth(folder) for folder in (root / "parent", dpo.run_dir / "export")]
    print(
        f"\nseed {seed}: DPO, log π {before:.2f} → {after:.2f}, letters of eight {said[0]:.2f} → "
        f"{said[1]:.2f}; reward model {ranked[0]:.2f} → {ranked[1]:.2f}, calibration error "
        f"{held_out(events(reward), 'pairs/calibration_error')[1]:.3f}"
    )
    assert after > max(0.7, before + 0.1)
    assert said[1] > said[0] + 0.5
    assert ranked[1] > 0.8


def test_what_a_reward_model_teaches_is_what_people_wanted(
    compared: tuple[Path, int, ResolvedRun, ResolvedRun],
) -> None:
    """Besides the reward model's score, the rule itself, which is only logged, rates the answers higher."""
    root, seed, _, reward = compared
    tokenizer = Tokenizer.from_file(str(root / "parent" / "tokenizer.json"))
    letters = [tokenizer.token_to_id(letter) for letter in SAID if letter.isalpha()]
    records = [{"prompt": f"say {number}", "tokens": letters} for number in range(100)]
    write_prompts(root / "prompts.jsonl", records)
    made = assigned(
        "rlhf", root / "parent", root / "storage-rl", f"data.path={root / 'prompts.jsonl'}", *COMMON,
        f"reward.model={reward.run_dir / 'export'}", "reward.model_actors=0",
        "reward.functions={token_share: 0.0}", "rollout.max_new_tokens=10", "rollout.group_size=8",
        "rollout.batch=64", "train.global_batch=8", "train.micro_batch=32", "train.steps=24",
        "evaluation.rows=20", "optim.learning_rate=1e-3", f"run.seed={seed}", "algorithm.kl=loss",
        "algorithm.kl_coefficient=0.01",
    )  # fmt: skip
    [found] = run([made])
    score, rule = held_out(found), held_out(found, "prompts/reward/token_share")
    print(
        f"\nseed {seed}: reward model's score {score[0]:+.2f} → {score[1]:+.2f}, share of letters "
        f"{rule[0]:.2f} → {rule[1]:.2f}, KL {held_out(found, 'prompts/kl')[1]:.2f}"
    )
    assert score[1] > score[0]
    assert rule[1] > rule[0] + 0.1


def mean_worth(folder: Path) -> float:
    """Return the rewards of 64 answers that a model draws."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    encoder = load_chat_encoder(folder)
    assert encoder is not None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompts = [
        encoder.prompt_ids([{"role": "user", "content": f"say {number}"}]) for number in range(64)
    ]
    answers = complete(
        model, prompts, max_new_tokens=10, temperature=1.0, top_p=1.0, seeds=list(range(64)),
        stop_ids=encoder.stop_ids, batch_size=64,
    )  # fmt: skip
    return sum(worth(tokenizer.decode(list(one.ids))) for one in answers) / len(answers)
