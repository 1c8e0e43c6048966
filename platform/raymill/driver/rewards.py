"""What judges answers in reinforcement learning, resolved before anything starts: the reward model, the
functions, and what a critic starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from raymill.cluster.session import NO_ACTORS, ActorResources
from raymill.data.messages.tokenizer import ChatTokenizer, encodes_as
from raymill.data.store.manifest import Prepared, tokenizer_fingerprint
from raymill.errors import ConfigError
from raymill.model.shape import gives_a_number, positions_of
from raymill.rl.reward.functions import AUTO, COMPARING
from raymill.rl.reward.names import check_names
from raymill.schema.jobs import RlhfJob, TrainJob
from raymill.track.marker import weights_digest
from raymill.track.registry import ResolvedModel, resolve_model


def resolve_rewards(
    job: RlhfJob, parent: ResolvedModel, tokenizer: ChatTokenizer
) -> dict[str, Any]:
    """Fields of the assignment that say who judges.

    Raises:
        ConfigError: a reward can't be had, or doesn't fit the policy.
    """
    problems = [f"reward.functions: {text}" for text in check_names(job.reward.functions)]
    root = job.storage.folder
    found: dict[str, Any] = {}
    digests: dict[str, str] = {}
    reward: ResolvedModel | None = None
    if job.reward.model is not None:
        reward = resolve_model(job.reward.model, job.tracking, root, key="reward.model")
        problems += _problems(job, "reward.model", reward, tokenizer)
        found = {"reward_folder": reward.folder, "reward": reward.name}
        digests["reward.model"] = weights_digest(reward.folder)
    if job.algorithm.advantage == "gae":
        critic = parent
        if job.critic.parent is not None:
            critic = resolve_model(job.critic.parent, job.tracking, root, key="critic.parent")
            problems += _too_short(job, f"critic.parent={job.critic.parent}", critic)
        elif reward is not None:
            critic = reward
        found["critic_folder"] = critic.folder
        digests["critic.parent"] = weights_digest(critic.folder)
    if problems:
        raise ConfigError(problems)
    return found | {"model_digests": digests}


def reference_problems(job: RlhfJob, prepared: Sequence[Prepared]) -> list[str]:
    """Weighted functions that compare with references, where no prompt has one to compare with."""
    prompts: Counter[str] = Counter()  # by verifier, of both splits
    answered: Counter[str] = Counter()
    for data in prepared:
        facts = data.manifest.prompts
        assert facts is not None
        for split in ("train", "validation"):
            prompts.update(facts.statistics[split]["verifiers"])
            answered.update(facts.statistics[split]["answered"])
    advice = (
        "give the records a column 'answer' (or end their messages with the assistant's turn), or name a "
        "function that needs none"
    )
    problems = []
    for name, weight in job.reward.functions.items():
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
    return problems


def actors_of(job: TrainJob) -> ActorResources:
    """What a job's samplers take, and after them its reward models."""
    if not isinstance(job, RlhfJob):
        return NO_ACTORS
    models = job.reward.model_actors if job.reward.model is not None else 0
    return ActorResources(
        job.rollout.actors + models, job.rollout.cpus_per_actor, job.rollout.gpus_per_actor
    )


def _problems(job: RlhfJob, key: str, model: ResolvedModel, tokenizer: ChatTokenizer) -> list[str]:
    """What keeps a reward model from judging this policy's answers token by token."""
    problems = []
    if not gives_a_number(model.folder):
        problems.append(
            f"{key}={job.reward.model}: {model.folder} is a language model and gives no reward; "
            "train one with jobs/reward.py"
        )
    if not encodes_as(model.folder, tokenizer.tokenizer):
        theirs = tokenizer_fingerprint(model.folder / "tokenizer.json")
        problems.append(
            f"{key}={job.reward.model}: it has another tokenizer ({theirs[:12]}) than the policy "
            f"({tokenizer.identity.fingerprint[:12]}); answers are never encoded again, so train the "
            "reward model on the same parent"
        )
    closing = len(tokenizer.closing_ids)
    return [*problems, *_too_short(job, f"{key}={job.reward.model}", model, closing)]


def _too_short(job: RlhfJob, what: str, model: ResolvedModel, closing: int = 0) -> list[str]:
    """`closing`: tokens that come after an answer."""
    positions, longest = positions_of(model.folder), job.max_sequence_tokens + closing
    if positions is None or longest <= positions:
        return []
    after = f", with the {closing} that the template writes after an answer," if closing else ""
    return [
        f"{what}: has {positions} positions; data.sequence_length + 1 + rollout.max_new_tokens"
        f"{after} are {longest}"
    ]
