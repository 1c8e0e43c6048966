"""Checks of the jobs that align a model: preferences, rewards, rollouts. They are pure, as in `checks.py`."""

from __future__ import annotations

from collections.abc import Iterator

from raymill.config.ranges import above, at_least, fraction, safe_name
from raymill.schema.jobs import DpoJob, RankJob, RewardJob, RlhfJob
from raymill.schema.sections import AlgorithmConfig, LoraConfig, RewardConfig, RolloutConfig


def reward_modelling(job: RewardJob) -> list[str]:
    """Check jobs/reward.py, apart from the settings that all jobs with a parent share."""
    return [
        *at_least("margin_scale", job.margin_scale, 0),
        *at_least("center_rewards", job.center_rewards, 0),
    ]


def preference_tuning(job: DpoJob) -> list[str]:
    """Check jobs/dpo.py, apart from the same settings."""
    loss = job.loss
    return [
        *above("loss.beta", loss.beta, 0),
        *at_least("loss.gamma", loss.gamma, 0),
        *(
            [f"loss.label_smoothing={loss.label_smoothing}: is for loss.name=dpo, not {loss.name}"]
            if loss.label_smoothing and loss.name != "dpo"
            else []
        ),
        *(
            []
            if 0 <= loss.label_smoothing < 0.5
            else [
                f"loss.label_smoothing={loss.label_smoothing}: must be at least 0 and below 0.5, "
                "where pairs say nothing"
            ]
        ),
    ]


def reinforcement(job: RlhfJob) -> list[str]:
    """Check jobs/rlhf.py, apart from the same settings."""
    return [
        *_algorithm(job.algorithm, job.rollout),
        *_rollout(job),
        *_reward(job.reward),
        *_dropout(job.lora),
        *above("critic.learning_rate", job.critic.learning_rate, 0),
        *at_least("evaluation.answers_shown", job.evaluation.answers_shown, 0),
        *at_least("evaluation.table_every", job.evaluation.table_every, 0),
    ]


def ranking(job: RankJob) -> list[str]:
    """Check jobs/rank.py, apart from its data and tracking."""
    return [
        *safe_name("name", job.name),
        *at_least("answers", job.answers, 2),
        *at_least("prompts", job.prompts, 1),
        *at_least("annotators_per_item", job.annotators_per_item, 1),
        *at_least("max_new_tokens", job.max_new_tokens, 1),
        *above("temperature", job.temperature, 0),
        *fraction("top_p", job.top_p, positive=True),
        *([] if job.model else ["model: name at least one whose answers are compared"]),
        *([] if 0 <= job.port < 65536 else [f"port={job.port}: must be from 0 to 65535"]),
        *(
            []
            if 0 <= job.judge_noise < 0.5
            else [f"judge_noise={job.judge_noise}: must be at least 0 and below 0.5"]
        ),
        *(
            ["judge: a synthetic judge ranks answers; it can't write (mode=write)"]
            if job.judge is not None and job.mode == "write"
            else []
        ),
    ]


def _dropout(lora: LoraConfig) -> Iterator[str]:
    if lora.dropout:
        yield (
            f"lora.dropout={lora.dropout}: an answer's old log-probability is computed without dropout and its "
            "new one with it, so the ratio of the two would be noise before anything is learned; use "
            "lora.dropout=0"
        )


def _algorithm(algorithm: AlgorithmConfig, rollout: RolloutConfig) -> Iterator[str]:
    for key in ("clip_low", "clip_high"):
        yield from above(f"algorithm.{key}", getattr(algorithm, key), 0)
    yield from above("algorithm.dual_clip", algorithm.dual_clip, 1)
    yield from above("algorithm.kl_target", algorithm.kl_target, 0)
    yield from at_least("algorithm.kl_horizon", algorithm.kl_horizon, 1)
    yield from at_least("algorithm.kl_coefficient", algorithm.kl_coefficient, 0)
    yield from at_least("algorithm.entropy_coefficient", algorithm.entropy_coefficient, 0)
    yield from above("algorithm.value_clip", algorithm.value_clip, 0)
    yield from above("algorithm.importance_cap", algorithm.importance_cap, 0)
    yield from at_least("algorithm.epochs", algorithm.epochs, 1)
    yield from at_least("algorithm.minibatches", algorithm.minibatches, 1)
    for key in ("gamma", "gae_lambda"):
        yield from fraction(f"algorithm.{key}", getattr(algorithm, key))
    needs_group = ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline")
    if algorithm.advantage in needs_group and rollout.group_size < 2:
        yield (
            f"rollout.group_size={rollout.group_size}: algorithm.advantage={algorithm.advantage} compares "
            "answers to one prompt; ask for at least 2"
        )
    if algorithm.kl == "reward" and algorithm.kl_estimator != "k1":
        yield (
            f"algorithm.kl_estimator={algorithm.kl_estimator}: in the reward only k1 has the KL's "
            "gradient; use k1, or algorithm.kl=loss"
        )
    if algorithm.kl == "loss" and algorithm.kl_estimator == "k1":
        yield (
            "algorithm.kl_estimator=k1: as a loss its expected gradient is zero; use k2, or "
            "algorithm.kl=reward"
        )
    if algorithm.kl != "none" and algorithm.kl_coefficient == 0 and algorithm.kl_target is None:
        yield f"algorithm.kl={algorithm.kl}: needs algorithm.kl_coefficient above 0"
    if algorithm.kl_target is not None and algorithm.kl_coefficient == 0:
        yield "algorithm.kl_target: an adaptive coefficient starts at algorithm.kl_coefficient above 0"


def _rollout(job: RlhfJob) -> Iterator[str]:
    rollout, train = job.rollout, job.train
    for key in ("group_size", "batch", "max_new_tokens", "threads"):
        yield from at_least(f"rollout.{key}", getattr(rollout, key), 1)
    for key in ("actors", "cpus_per_actor", "gpus_per_actor"):
        yield from at_least(f"rollout.{key}", getattr(rollout, key), 0)
    yield from above("rollout.temperature", rollout.temperature, 0)
    yield from above("rollout.timeout_s", rollout.timeout_s, 0)
    if rollout.top_p != 1:
        yield (
            f"rollout.top_p={rollout.top_p}: answers would be drawn from another distribution than the "
            "one that is trained; use 1"
        )
    answers = train.global_batch * rollout.group_size
    if job.algorithm.kl_target is not None and job.algorithm.kl_horizon < answers:
        yield (
            f"algorithm.kl_horizon={job.algorithm.kl_horizon}: must be at least the {answers} answers "
            "of a step, or the coefficient could swing to below 0"
        )
    workers, minibatches = job.run.least, job.algorithm.minibatches
    # A run that may resize takes the numbers of workers that divide the prompts.
    one_size = job.run.least == job.run.most
    if (
        one_size
        and min(train.global_batch, workers, minibatches) >= 1
        and train.global_batch % (workers * minibatches)
    ):
        yield (
            f"train.global_batch={train.global_batch}: {workers} workers and "
            f"{minibatches} minibatches must divide the prompts of a step"
        )
    if rollout.staleness and rollout.actors == 0 and rollout.load_from is None:
        yield "rollout.staleness=1: needs rollout.actors of at least 1, to sample while training"
    if rollout.engine == "vllm":
        yield from _vllm(rollout)


def _vllm(rollout: RolloutConfig) -> Iterator[str]:
    if rollout.actors == 0:
        yield (
            "rollout.actors=0: vLLM sets threads and process groups of its whole process, and can't "
            "be in a worker's; ask for at least 1"
        )
    if 0 < rollout.temperature < 0.01:
        yield f"rollout.temperature={rollout.temperature}: vLLM would sample at 0.01; ask for at least that"


def _reward(reward: RewardConfig) -> Iterator[str]:
    yield from at_least("reward.workers", reward.workers, 1)
    yield from at_least("reward.model_actors", reward.model_actors, 0)
    yield from above("reward.timeout_s", reward.timeout_s, 0)
    yield from at_least("reward.length_penalty", reward.length_penalty, 0)
    if not reward.functions and reward.model is None:
        yield (
            "reward.functions, reward.model: there is no reward; give one, as in "
            "reward.functions.exact=1.0 or reward.model=models:/assistant@reward"
        )
