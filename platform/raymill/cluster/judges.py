"""What judges answers in reinforcement learning, resolved before anything starts: the reward model, the
functions, and what a critic starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raymill.cluster.session import NOTHING, Beside
from raymill.config.schema import RlhfJob, TrainJob
from raymill.data.chat.tokenizer import ChatTokenizer
from raymill.data.manifest import tokenizer_fingerprint
from raymill.errors import ConfigError
from raymill.model.shape import gives_a_number, positions_of
from raymill.plan.batch import passed_length
from raymill.reward.names import check_names
from raymill.track.registry import ResolvedModel, resolve_model, weights_digest


def judges_of(job: RlhfJob, parent: ResolvedModel, tokenizer: ChatTokenizer) -> dict[str, Any]:
    """Fields of the assignment that say who judges.

    Raises:
        ConfigError: a reward can't be had, or doesn't fit the policy.
    """
    problems = [f"reward.functions: {text}" for text in check_names(job.reward.functions)]
    root = Path(job.storage.root)
    found: dict[str, Any] = {}
    folder: Path | None = None
    if job.reward.model is not None:
        reward = resolve_model(job.reward.model, job.tracking, root, key="reward.model")
        folder = reward.folder
        problems += _problems(job, "reward.model", reward, tokenizer)
        found = {
            "reward_folder": folder,
            "reward": reward.name,
            "reward_digest": weights_digest(folder),
        }
    if job.algorithm.advantage == "gae":
        if job.critic.parent is not None:
            folder = resolve_model(
                job.critic.parent, job.tracking, root, key="critic.parent"
            ).folder
        found["critic_folder"] = folder or parent.folder
    if problems:
        raise ConfigError(problems)
    return found


def actors_of(job: TrainJob) -> Beside:
    """What a job's samplers take, and after them its reward models."""
    if not isinstance(job, RlhfJob):
        return NOTHING
    models = job.reward.model_actors if job.reward.model is not None else 0
    return Beside(
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
    theirs = tokenizer_fingerprint(model.folder / "tokenizer.json")
    if theirs != tokenizer.identity.fingerprint:
        problems.append(
            f"{key}={job.reward.model}: it has another tokenizer ({theirs[:12]}) than the policy "
            f"({tokenizer.identity.fingerprint[:12]}); answers are never encoded again, so train the "
            "reward model on the same parent"
        )
    positions = positions_of(model.folder)
    longest = passed_length(job)
    if positions is not None and longest > positions:
        problems.append(
            f"{key}={job.reward.model}: has {positions} positions; data.sequence_length + "
            f"rollout.max_new_tokens are {longest}"
        )
    return problems
