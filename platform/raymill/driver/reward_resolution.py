"""Resolve what reinforcement learning adds to a run: rewards, the critic, and the resources of actors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from raymill.cluster.session import ActorResources
from raymill.data.messages.tokenizer import ChatTokenizer, encodes_as
from raymill.data.store.manifest import load_prepared, tokenizer_fingerprint
from raymill.driver.tuning_resolution import Parent
from raymill.engine.resolved_run import ResolvedRl
from raymill.errors import ConfigError
from raymill.model.shape import context_length_of, is_reward_model
from raymill.rl.reward.functions import AUTO, COMPARING
from raymill.rl.reward.names import check_names
from raymill.schema.jobs import RlhfJob
from raymill.track.marker import weights_digest
from raymill.track.registry import ResolvedModel, resolve_model


def resolve_rewards(job: RlhfJob, parent: Parent) -> ResolvedRl:
    """Find the reward model, the reward functions, and the critic's initial weights.

    Raises:
        ConfigError: one of them can't be loaded, or doesn't fit the policy.
    """
    problems = [f"reward.functions: {text}" for text in check_names(job.reward.functions)]
    root = job.storage.folder
    digests: dict[str, str] = {}
    reward: ResolvedModel | None = None
    critic: ResolvedModel | None = None
    if job.reward.model is not None:
        reward = resolve_model(job.reward.model, job.tracking, root, key="reward.model")
        problems += _reward_model_problems(job, reward, parent.tokenizer)
        digests["reward.model"] = weights_digest(reward.folder)
    if job.algorithm.advantage == "gae":
        # Values are sums of rewards, so that a reward model is the best start where there is one.
        critic = reward or parent.model
        if job.critic.parent is not None:
            critic = resolve_model(job.critic.parent, job.tracking, root, key="critic.parent")
            problems += _length_problems(job, f"critic.parent={job.critic.parent}", critic)
        digests["critic.parent"] = weights_digest(critic.folder)
    if problems:
        raise ConfigError(problems)
    return ResolvedRl(
        reward_model=None if reward is None else reward.name,
        reward_folder=None if reward is None else reward.folder,
        critic_folder=None if critic is None else critic.folder,
        model_digests=digests,
        step_timeout_s=_step_timeout_s(job),
    )


def _reward_model_problems(
    job: RlhfJob, model: ResolvedModel, tokenizer: ChatTokenizer
) -> Iterator[str]:
    """Say why a reward model can't score this policy's answers token by token."""
    name = f"reward.model={job.reward.model}"
    if not is_reward_model(model.folder):
        yield (
            f"{name}: {model.folder} is a language model and gives no reward; "
            "train one with jobs/reward.py"
        )
    # The reward model gets the policy's tokens as they were sampled: decoding and encoding them again
    # could give other tokens.
    if not encodes_as(model.folder, tokenizer.tokenizer):
        theirs = tokenizer_fingerprint(model.folder / "tokenizer.json")
        yield (
            f"{name}: it has another tokenizer ({theirs[:12]}) than the policy "
            f"({tokenizer.identity.fingerprint[:12]}); answers are never encoded again, so train the "
            "reward model on the same parent"
        )
    yield from _length_problems(job, name, model, len(tokenizer.closing_ids))


def _length_problems(
    job: RlhfJob, name: str, model: ResolvedModel, closing: int = 0
) -> Iterator[str]:
    """Say that a model has too few positions. `closing`: tokens that follow an answer."""
    positions, longest = context_length_of(model.folder), job.max_sequence_tokens + closing
    if positions is None or longest <= positions:
        return
    after = f", with the {closing} that the template writes after an answer," if closing else ""
    yield (
        f"{name}: has {positions} positions; data.sequence_length + 1 + rollout.max_new_tokens"
        f"{after} are {longest}"
    )


def _step_timeout_s(job: RlhfJob) -> float:
    """Return the longest that the answers of a step may take to be sampled and rewarded."""
    from raymill.rl.reward.task import GRACE_S
    from raymill.rl.rollout.actor_pool import TRIES

    # A batch that is lost with its actor is sampled again, up to TRIES times.
    rollout, reward = job.rollout, job.reward
    answers = job.train.global_batch * rollout.group_size
    batches = math.ceil(answers / rollout.batch)
    sampling = (math.ceil(batches / max(1, rollout.actors)) + TRIES) * rollout.timeout_s
    scoring = answers * len(reward.functions) * (reward.timeout_s + GRACE_S) / reward.workers
    return sampling + scoring


def actor_resources(job: RlhfJob) -> ActorResources:
    """Return the resources of a job's rollout actors and of its reward models' actors."""
    # Without actors, rank 0 samples and scores in its own process.
    models = job.reward.model_actors if job.reward.model is not None else 0
    return ActorResources(
        job.rollout.actors + models, job.rollout.cpus_per_actor, job.rollout.gpus_per_actor
    )


def check_reference_answers(job: RlhfJob, folders: Iterable[Path]) -> None:
    """Refuse weighted functions that compare with reference answers, where no prompt has one.

    Raises:
        ConfigError: names the functions.
    """
    prompts: Counter[str] = Counter()  # by verifier, of both splits
    answered: Counter[str] = Counter()
    for folder in folders:
        facts = load_prepared(folder).manifest.prompts
        if facts is None:
            # Data of another kind, which is refused with a message of its own.
            return
        for split in ("train", "validation"):
            prompts.update(facts.statistics[split]["verifiers"])
            answered.update(facts.statistics[split]["answered"])
    advice = (
        "give the records a column 'answer' (or end their messages with the assistant's turn), or name a "
        "function that needs none"
    )
    problems = []
    for name, weight in job.reward.functions.items():
        # A function of weight 0 is only measured, so that it may be missing for every prompt.
        if weight and name in COMPARING and not answered.total():
            problems.append(
                f"reward.functions.{name}: it compares with a prompt's reference answer, and none of the "
                f"{prompts.total():,} prompts has one; {advice}"
            )
        elif weight and name == AUTO:
            problems += [
                f"reward.functions.auto: {count:,} prompts name the verifier {verifier}, which compares with a "
                f"reference answer, and none of them has one; {advice}"
                for verifier, count in sorted(prompts.items())
                if verifier in COMPARING and count and not answered[verifier]
            ]
    if problems:
        raise ConfigError(problems)
