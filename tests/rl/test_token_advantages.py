"""Advantages of tokens, against loops over floats, answer by answer, and against TRL."""

from __future__ import annotations

import math
import statistics
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raymill.rl.advantages import EPSILON, GROUP_ADVANTAGES, AllReduce, compute_advantages
from raymill.rl.rollout_batch import RolloutBatch
from raymill.schema.sections import AlgorithmConfig
from sections import plain

UNHURRIED = settings(deadline=None, max_examples=40)
SEEDS = st.integers(0, 2**32 - 1)
GROUPED = ("grpo", "dr_grpo", "rloo")
BY_TOKEN = ("gae", "reinforce_pp", "reinforce_pp_baseline")
NAN = math.nan


@dataclass(frozen=True)
class Step:
    """A step's answers, and what was found out about them."""

    rollouts: RolloutBatch
    rewards: torch.Tensor
    stopped: torch.Tensor
    group: int

    def compute_advantages(
        self, algorithm: AlgorithmConfig, all_reduce: AllReduce = lambda x: x
    ) -> RolloutBatch:
        return compute_advantages(
            self.rollouts, self.rewards, self.stopped, self.group, algorithm, all_reduce
        )

    def take(self, index: list[int], group: int | None = None) -> Step:
        """Some answers, as wide as they were."""
        place = torch.tensor(index, dtype=torch.long)
        columns = {
            name: None if value is None else value[place]
            for name, value in vars(self.rollouts).items()
            if name != "kl_coefficient"
        }
        return Step(
            replace(self.rollouts, **columns),
            self.rewards[place],
            self.stopped[place],
            group or self.group,
        )


def a_step(seed: int, groups: int = 3, group: int = 4, beta: float = 0.3) -> Step:
    """Answers of 0 to 6 tokens, some without a reward, some cut off, rewards often equal. What is known of
    tokens that aren't an answer's is anything."""
    random = np.random.default_rng(seed)
    count = groups * group
    prompts = [[1] * int(n) for n in random.integers(1, 4, count)]
    sizes = random.integers(0, 7, count)
    answers = [[2] * int(n) for n in sizes]
    drawn = [(-random.uniform(0, 3, n)).tolist() for n in sizes]
    rollouts = RolloutBatch.from_columns(prompts, answers, drawn)
    reference_BT = rollouts.sampler + torch.from_numpy(random.normal(0, 0.5, rollouts.mask.shape))
    value_BT = torch.from_numpy(random.normal(0, 1, rollouts.mask.shape)).float()
    rewards = random.choice([0.0, 0.1, 1.0, 0.7, NAN], count, p=[0.25, 0.25, 0.25, 0.15, 0.1])
    if random.random() < 0.3:
        rewards[:group] = NAN
    rollouts = replace(
        rollouts,
        reference=reference_BT.float(),
        value=value_BT,
        kl_coefficient=beta,
    )
    return Step(
        rollouts, torch.from_numpy(rewards), torch.from_numpy(random.random(count) < 0.7), group
    )


def of_group(name: str, rewards: list[float]) -> list[float]:
    """The definitions."""
    count = len(rewards)
    if count < 2 or len(set(rewards)) == 1:
        return [0.0] * count
    if name == "rloo":
        return [r - (math.fsum(rewards) - r) / (count - 1) for r in rewards]
    middle = math.fsum(rewards) / count
    if name == "grpo":
        return [(r - middle) / (statistics.stdev(rewards) + EPSILON) for r in rewards]
    return [r - middle for r in rewards]


def estimated(name: str, d: float) -> float:
    return {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[name]


def by_loops(step: Step, algorithm: AlgorithmConfig) -> tuple[Any, Any, Any]:
    """Mask, advantages and returns, as lists of lists; whitened over this step alone."""
    rollouts, name = step.rollouts, algorithm.advantage
    rewards, stopped = step.rewards.tolist(), step.stopped.tolist()
    count, width = rollouts.mask.shape
    tokens = [[t for t in range(width) if rollouts.mask[row, t]] for row in range(count)]
    cost = [[0.0] * width for _ in range(count)]
    if algorithm.kl == "reward":
        assert rollouts.reference is not None
        policy_BT = rollouts.sampler if rollouts.old is None else rollouts.old
        for row in range(count):
            for t in tokens[row]:
                d = float(policy_BT[row, t]) - float(rollouts.reference[row, t])
                cost[row][t] = rollouts.kl_coefficient * estimated(algorithm.kl_estimator, d)
    learned = []
    for row in range(count):
        first = row // step.group * step.group
        known = {r for r in rewards[first : first + step.group] if not math.isnan(r)}
        learned.append(
            not math.isnan(rewards[row])
            and (stopped[row] or algorithm.overlong == "keep")
            and (len(known) > 1 or not algorithm.skip_equal_groups)
        )
    worth = dict(enumerate(rewards))
    if name in GROUPED:
        worth = {row: r - math.fsum(cost[row]) for row, r in worth.items()}
    if name in (*GROUPED, "reinforce_pp_baseline"):
        for first in range(0, count, step.group):
            rows = [r for r in range(first, first + step.group) if not math.isnan(rewards[r])]
            found = of_group(
                name.replace("reinforce_pp_baseline", "dr_grpo"), [worth[r] for r in rows]
            )
            worth |= zip(rows, found, strict=True)
    advantages = [[0.0] * width for _ in range(count)]
    returns = [[0.0] * width for _ in range(count)]
    for row in range(count):
        places = tokens[row] if learned[row] else []
        for t in places:
            later = [u for u in places if u >= t]
            gain = {u: (worth[row] if u == places[-1] else 0.0) - cost[row][u] for u in later}
            if name in GROUPED:
                advantages[row][t] = worth[row]
            elif name == "gae":
                assert rollouts.value is not None
                v = rollouts.value[row].tolist()
                after = dict(zip(later, [*(v[u] for u in later[1:]), 0.0], strict=True))
                advantages[row][t] = math.fsum(
                    (algorithm.gamma * algorithm.gae_lambda) ** steps
                    * (gain[u] + algorithm.gamma * after[u] - v[u])
                    for steps, u in enumerate(later)
                )
                returns[row][t] = advantages[row][t] + v[t]
            else:
                advantages[row][t] = math.fsum(
                    algorithm.gamma**steps * gain[u] for steps, u in enumerate(later)
                )
    mask = [
        [float(learned[row] and t in tokens[row]) for t in range(width)] for row in range(count)
    ]
    if algorithm.whiten:
        flat = [advantages[row][t] for row in range(count) for t in range(width) if mask[row][t]]
        if flat:
            middle, spread = statistics.fmean(flat), math.sqrt(statistics.pvariance(flat) + EPSILON)
            advantages = [
                [(a - middle) / spread * m for a, m in zip(*rows, strict=True)]
                for rows in zip(advantages, mask, strict=True)
            ]
    return mask, advantages, returns


ALGORITHMS = st.builds(
    partial(plain, AlgorithmConfig),
    name=st.just("grpo"),
    advantage=st.sampled_from([*GROUPED, *BY_TOKEN]),
    kl=st.sampled_from(["none", "reward", "loss"]),
    kl_estimator=st.sampled_from(["k1", "k2", "k3"]),
    gamma=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
    whiten=st.booleans(),
    skip_equal_groups=st.booleans(),
    overlong=st.sampled_from(["keep", "mask"]),
)


@settings(deadline=None, max_examples=80)
@given(seed=SEEDS, algorithm=ALGORITHMS, old=st.booleans())
def test_every_algorithm_is_its_definition(
    seed: int, algorithm: AlgorithmConfig, old: bool
) -> None:
    step = a_step(seed)
    if old:
        moved = replace(step.rollouts, old=step.rollouts.sampler - 0.2 * step.rollouts.mask)
        step = replace(step, rollouts=moved)
    found = step.compute_advantages(algorithm)
    mask, advantages, returns = by_loops(step, algorithm)
    assert found.mask.tolist() == mask
    assert found.advantage is not None and found.advantage.dtype == torch.float32
    torch.testing.assert_close(found.advantage, torch.tensor(advantages), rtol=1e-4, atol=1e-4)
    if algorithm.advantage == "gae":
        assert found.returns is not None
        torch.testing.assert_close(found.returns, torch.tensor(returns), rtol=1e-4, atol=1e-4)
    else:
        assert found.returns is None
    changed = ("mask", "advantage", "returns")
    for name in vars(found):
        assert (getattr(found, name) is getattr(step.rollouts, name)) or name in changed


# --- Answers without a reward ------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*GROUPED, *BY_TOKEN])
@pytest.mark.parametrize("kl", ["none", "reward"])
def test_an_answer_without_a_reward_is_as_if_it_were_not_there(name: str, kl: str) -> None:
    step = a_step(5, groups=2, group=4)
    rewards = torch.tensor([0.3, NAN, 1.0, 0.1, 0.0, 0.5, NAN, 2.0], dtype=torch.float64)
    step = replace(step, rewards=rewards)
    algorithm = plain(AlgorithmConfig, "grpo", name, kl=kl, kl_estimator="k1", whiten=name == "gae")  # type: ignore[arg-type]
    kept = [0, 2, 3, 4, 5, 7]
    whole, without = (
        step.compute_advantages(algorithm),
        step.take(kept, group=3).compute_advantages(algorithm),
    )
    assert whole.advantage is not None and without.advantage is not None
    torch.testing.assert_close(whole.advantage[kept], without.advantage)
    assert torch.equal(whole.mask[kept], without.mask)
    for row in (1, 6):
        assert not whole.mask[row].any() and not whole.advantage[row].any()
    # Whatever else is known of the dropped answer can't matter either.
    other = replace(step.rollouts, sampler=step.rollouts.sampler.clone())
    other.sampler[[1, 6]] -= 50
    again = replace(step, rollouts=other).compute_advantages(algorithm)
    assert again.advantage is not None and torch.equal(again.advantage, whole.advantage)


@pytest.mark.parametrize("name", [*GROUPED, *BY_TOKEN])
def test_a_group_of_which_one_or_none_is_known(name: str) -> None:
    step = replace(
        a_step(1, groups=2, group=3, beta=0.0),
        rewards=torch.tensor([NAN, NAN, NAN, NAN, 4.0, NAN], dtype=torch.float64),
    )
    found = step.compute_advantages(plain(AlgorithmConfig, "grpo", name, gae_lambda=1.0))  # type: ignore[arg-type]
    assert found.advantage is not None
    assert not found.mask[[0, 1, 2, 3, 5]].any() and torch.isfinite(found.advantage).all()
    if name not in ("gae", "reinforce_pp"):
        assert not found.advantage.any(), "there is nothing to compare it with"


# --- Equal rewards -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*sorted(GROUP_ADVANTAGES)])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -0.7, 1e-30, 1e30])
def test_equal_rewards_teach_exactly_nothing(name: str, reward: float) -> None:
    """Equal rewards give 0 even where their mean differs from them: (0.1 + 0.1 + 0.1) / 3 isn't 0.1."""
    step = a_step(2, groups=2, group=3)
    rewards = torch.full((6,), reward, dtype=torch.float64)
    rewards[4] = NAN
    found = replace(step, rewards=rewards).compute_advantages(plain(AlgorithmConfig, "grpo", name))  # type: ignore[arg-type]
    assert found.advantage is not None and not found.advantage.any()
    assert found.mask[:4].any(), "they count in the mean all the same"
    skipped = replace(step, rewards=rewards).compute_advantages(
        plain(AlgorithmConfig, "grpo", name, skip_equal_groups=True)  # type: ignore[arg-type]
    )
    assert not skipped.mask.any()


# --- Answers that were cut off -----------------------------------------------------------------------


def test_the_reward_of_an_answer_cut_off_is_at_its_last_token_and_compared_with() -> None:
    rollouts = RolloutBatch.from_columns([[1, 1], [1]], [[2, 2, 2], [2, 0]], [[0.0] * 3, [0.0] * 2])
    rewards = torch.tensor([1.0, 3.0], dtype=torch.float64)
    step = Step(rollouts, rewards, torch.tensor([False, True]), 2)
    keep = step.compute_advantages(plain(AlgorithmConfig, "ppo", "reinforce_pp", gamma=0.5))
    assert keep.advantage is not None
    # The padding token 0 that the second answer drew is a token as any other.
    assert keep.advantage.tolist() == [[0, 0.25, 0.5, 1.0], [1.5, 3.0, 0, 0]]
    masked = step.compute_advantages(plain(AlgorithmConfig, "grpo", "dr_grpo", overlong="mask"))
    assert masked.advantage is not None
    assert masked.advantage.tolist() == [[0] * 4, [1.0, 1.0, 0, 0]]
    assert masked.mask.sum(dim=1).tolist() == [0, 2]


def test_returns_are_taken_before_whitening() -> None:
    step = a_step(8)
    algorithm = plain(AlgorithmConfig, "ppo", "gae", kl="reward", kl_estimator="k1")
    before, after = (
        step.compute_advantages(algorithm),
        step.compute_advantages(replace(algorithm, whiten=True)),
    )
    assert before.returns is not None and after.returns is not None
    assert torch.equal(before.returns, after.returns)
    assert before.advantage is not None and after.advantage is not None
    assert not torch.allclose(before.advantage, after.advantage)
    white = after.advantage[after.mask > 0].double()
    assert abs(float(white.mean())) < 1e-6 and float(white.var(correction=0)) == pytest.approx(
        1, rel=1e-4
    )


# --- Ranks, order, padding ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gae", "reinforce_pp", "reinforce_pp_baseline", "grpo"])
def test_ranks_credit_as_one(name: str) -> None:
    """Two ranks with groups of their own, one with fewer; what is whitened is all of it."""
    step = a_step(3, groups=5, group=2)
    algorithm = plain(AlgorithmConfig, "ppo", name, kl="reward", kl_estimator="k1", whiten=True)  # type: ignore[arg-type]
    cuts = (list(range(0, 4)), list(range(4, 10)))
    barrier, posted = threading.Barrier(2, timeout=30), [torch.zeros(0)] * 2

    def run(rank: int) -> RolloutBatch:
        def all_reduce(sums: torch.Tensor) -> torch.Tensor:
            posted[rank] = sums
            barrier.wait()
            total = posted[rank] + posted[1 - rank]
            barrier.wait()
            return total

        return step.take(cuts[rank]).compute_advantages(algorithm, all_reduce)

    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(run, range(2)))
    whole = step.compute_advantages(algorithm)
    shared = torch.cat([part.advantage for part in parts if part.advantage is not None])
    assert whole.advantage is not None
    torch.testing.assert_close(shared, whole.advantage)


@UNHURRIED
@given(seed=SEEDS, algorithm=ALGORITHMS)
def test_order_and_padding_change_nothing(seed: int, algorithm: AlgorithmConfig) -> None:
    step = a_step(seed)
    found = step.compute_advantages(algorithm)
    order = [4, 5, 6, 7, 11, 9, 8, 10, 2, 3, 1, 0]  # groups, and answers within them
    mixed = step.take(order).compute_advantages(algorithm)
    assert found.advantage is not None and mixed.advantage is not None
    torch.testing.assert_close(mixed.advantage, found.advantage[order], rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed.mask, found.mask[order])

    def wider(value: Any) -> Any:
        grown = isinstance(value, torch.Tensor) and value.ndim == 2
        return torch.nn.functional.pad(value, (0, 3)) if grown else value

    padded = RolloutBatch(**{name: wider(value) for name, value in vars(step.rollouts).items()})
    again = replace(step, rollouts=padded).compute_advantages(algorithm)
    assert again.advantage is not None
    torch.testing.assert_close(again.advantage[:, :-3], found.advantage, rtol=1e-5, atol=1e-6)
    assert not again.advantage[:, -3:].any()


# --- against TRL -------------------------------------------------------------------------------------


def trl_advantages(name: str, step: Step, beta: float, **more: Any) -> torch.Tensor:
    """Return the advantages of TRL's trainer: its own code, with stand-ins for sampling and models."""
    module = pytest.importorskip(f"trl.trainer.{name}_trainer", reason="TRL is in the dev extra")
    trainer = {"grpo": "GRPOTrainer", "rloo": "RLOOTrainer"}[name]
    rollouts, count = step.rollouts, len(step.rollouts)
    assert rollouts.reference is not None
    bounds = [(int(row.nonzero()[0]), int(row.sum())) for row in rollouts.mask]
    prompts = [rollouts.tokens[row, : first + 1].tolist() for row, (first, _) in enumerate(bounds)]
    answers = [[2] * size for _, size in bounds]
    width = max(size for _, size in bounds)
    columns = {}
    for key, of_BT in (("policy", rollouts.sampler), ("reference", rollouts.reference)):
        columns[key] = torch.zeros(count, width, dtype=torch.float64)
        for row, (first, size) in enumerate(bounds):
            columns[key][row, :size] = of_BT[row, first : first + size]
    generated: tuple[Any, ...] = (prompts, answers, [""] * count)
    if name == "grpo":
        generated = (prompts, answers, None, [""] * count, None, {}, None, None)
    model, reference = (
        SimpleNamespace(training=True, is_gradient_checkpointing=False) for _ in "ab"
    )
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), process_index=0, gather=lambda x: x,
        reduce=lambda x, reduction: x,
    )  # fmt: skip
    itself = SimpleNamespace(
        accelerator=accelerator, model=model, ref_model=reference, beta=beta,
        _generate=lambda _: generated, _tokenizer=SimpleNamespace(pad_token_id=0),
        _get_per_token_logps_and_entropies=lambda of, *_, **__: (
            columns["policy" if of is model else "reference"], None, None,
        ),
        _calculate_rewards=lambda *_: step.rewards[:, None].clone(), reward_func_names=["r"],
        reward_weights=torch.ones(1), reward_clip_range=None, num_generations=step.group,
        normalize_advantages=False, mask_truncated_completions=False, pad_to_multiple_of=None,
        environment_factories=None, environments=None, tools=None, use_vllm=False, num_iterations=1,
        multi_objective_aggregation="sum_then_normalize", log_multimodal=False,
        args=SimpleNamespace(
            per_device_train_batch_size=count, gradient_checkpointing_kwargs=None,
            steps_per_generation=1, gradient_accumulation_steps=1,
        ),
        _metrics={"train": defaultdict(list)}, _logs=defaultdict(list) | {
            "rewards": defaultdict(list), "extra": defaultdict(list),
        },
        _pending_extra_logs={}, _pending_metrics={}, **more,
    )  # fmt: skip
    method = getattr(module, trainer)._generate_and_score_completions
    advantages: torch.Tensor = method(itself, [{"prompt": ""}] * count)["advantages"]
    return advantages


def a_full_step(seed: int) -> Step:
    """No answer without tokens: TRL has none."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 7, 12)
    rollouts = RolloutBatch.from_columns(
        [[1, 1]] * 12, [[2] * int(n) for n in sizes], [(-random.random(n)).tolist() for n in sizes]
    )
    reference_BT = (rollouts.sampler - torch.from_numpy(random.random(rollouts.mask.shape))).float()
    rewards = torch.from_numpy(random.choice([0.0, 0.25, 1.0, 3.0], 12))
    rewards[4:8] = 0.25  # of one value
    rewards[1] = NAN
    rollouts = replace(rollouts, reference=reference_BT * rollouts.mask, kl_coefficient=0.05)
    return Step(rollouts, rewards, torch.ones(12, dtype=torch.bool), 4)


@pytest.mark.parametrize("seed", range(2))
def test_trl_rloo(seed: int) -> None:
    """Include the KL penalty of the rewards, and an answer without a reward."""
    step = a_full_step(seed)
    theirs_B = trl_advantages("rloo", step, 0.05)
    found = step.compute_advantages(
        plain(AlgorithmConfig, "rloo", "rloo", kl="reward", kl_estimator="k1")
    )
    assert found.advantage is not None
    expected_BT = theirs_B[:, None] * step.rollouts.mask
    torch.testing.assert_close(found.advantage, expected_BT.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scale", "name"), [("group", "grpo"), ("none", "dr_grpo")])
def test_trl_grpo(scale: str, name: str) -> None:
    """Up to ε, which is 1e-4 there."""
    step = a_full_step(3)
    theirs_B = trl_advantages("grpo", step, 0.0, scale_rewards=scale)
    if scale == "group":
        for first in range(0, 12, 4):
            known = step.rewards[first : first + 4]
            std = known[~known.isnan()].std()
            theirs_B[first : first + 4] *= (std + 1e-4) / (std + EPSILON)
    found = step.compute_advantages(plain(AlgorithmConfig, "grpo", name))  # type: ignore[arg-type]
    assert found.advantage is not None
    expected_BT = theirs_B[:, None] * step.rollouts.mask
    torch.testing.assert_close(found.advantage, expected_BT.float(), rtol=1e-5, atol=1e-6)
