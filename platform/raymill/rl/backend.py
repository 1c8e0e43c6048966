"""Start of the first rank's rollout backend: samplers and reward computer, as configured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raymill.data.messages.folder import closing_ids, load_chat_encoder
from raymill.data.prompts.metadata import PromptRecord, read_metadata
from raymill.data.store.manifest import PreparedData, read_tokenizer
from raymill.data.store.rows import SOURCE_SHIFT
from raymill.engine.resolved_run import ResolvedRl, ResolvedRun
from raymill.errors import ConfigError
from raymill.generate.batch import Completion
from raymill.objective.forward import FLAT_KERNELS
from raymill.rl.reward.computer import MODEL, Combination, RewardComputer, Scorer
from raymill.rl.reward.functions import AUTO
from raymill.rl.reward.model import (
    LocalRewardModel,
    RewardModelPool,
    RewardModelSpec,
    SequenceScorer,
)
from raymill.rl.reward.names import check_verifiers
from raymill.rl.rollout.engine import EngineSpec
from raymill.rl.rollout.pool import LocalPool, Pool, RolloutPool
from raymill.rl.rollout.transformers_engine import ModelSpec
from raymill.rl.rollout.vllm_engine import VllmSpec
from raymill.rl.rollout_backend import RolloutBackend
from raymill.schema.jobs import RlhfJob


def start_rollout_backend(
    resolved: ResolvedRun, job: RlhfJob, prepared: Sequence[PreparedData]
) -> RolloutBackend:
    """Start samplers and reward computer.

    Raises:
        RaymillError: prompts name unknown verifiers, or processes can't be started.
    """
    assert resolved.rl is not None, "the driver resolves the part of reinforcement learning"
    prompt_metadata: dict[int, PromptRecord] = {}
    for source, data in enumerate(prepared):
        facts = data.manifest.prompts
        assert facts is not None, "the data of this job are prompts"
        records = read_metadata(data.folder / facts.book)
        # Record numbers of rows carry their source in the upper bits.
        prompt_metadata |= {
            number + (source << SOURCE_SHIFT): record for number, record in records.items()
        }
    if AUTO in job.reward.functions:
        problems = check_verifiers(record.verifier for record in prompt_metadata.values())
        if all(record.verifier is None for record in prompt_metadata.values()):
            problems.append(
                "reward.functions: auto calls the prompts' own verifiers, and no prompt names one; set "
                "data.verifier, or name a function"
            )
        if problems:
            raise ConfigError(problems)
    tokenizer = read_tokenizer(prepared[0].tokenizer_folder / "tokenizer.json")

    def decode(ids: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = tokenizer.decode_batch(
            [list(sequence) for sequence in ids], skip_special_tokens=False
        )
        return texts

    return RolloutBackend(
        pool=_pool(resolved, resolved.rl, job, prepared[0]),
        reward_computer=_reward_computer(resolved.rl, job, prepared[0]),
        prompt_metadata=prompt_metadata,
        decode=decode,
        save_to=_storage_path(job, job.rollout.save_to),
        load_from=_storage_path(job, job.rollout.load_from),
    )


def _pool(resolved: ResolvedRun, rl: ResolvedRl, job: RlhfJob, prepared: PreparedData) -> Pool:
    rollout, spec = job.rollout, _engine_spec(resolved, job, prepared)
    if rollout.actors == 0:
        return LocalPool(spec)
    return RolloutPool(
        spec,
        actors=rollout.actors,
        cpus_per_actor=rollout.cpus_per_actor,
        gpus_per_actor=rollout.gpus_per_actor,
        timeout_s=rollout.timeout_s,
        scheduling_strategies=rl.scheduling_strategies[: rollout.actors],
    )


def _engine_spec(
    resolved: ResolvedRun, job: RlhfJob, prepared: PreparedData
) -> EngineSpec[Completion]:
    rollout, facts = job.rollout, prepared.manifest
    assert resolved.model_folder is not None, "the parent model has been resolved"
    folder, vocab_size = str(resolved.model_folder), facts.tokenizer.vocab_size
    if rollout.engine == "vllm":
        return VllmSpec(
            folder=folder,
            vocab_size=vocab_size,
            dtype=job.train.precision,
            threads=_threads(job),
            batch=rollout.batch,
            # A prepared row holds one token more than its sequence length.
            max_tokens=facts.sequence_length + 1 + rollout.max_new_tokens,
            gpu=rollout.gpus_per_actor > 0,
        )
    gpu = rollout.gpus_per_actor > 0 or (rollout.actors == 0 and job.cluster.gpu)
    return ModelSpec(
        folder=folder,
        vocab_size=vocab_size,
        # Actors on CPUs, which lack these kernels, may sample for a trainer on GPUs.
        attention="sdpa" if job.attention in FLAT_KERNELS and not gpu else job.attention,
        dtype=job.train.precision,
        threads=_threads(job),
        gpu=gpu,
    )


def _reward_computer(rl: ResolvedRl, job: RlhfJob, prepared: PreparedData) -> RewardComputer:
    reward, rollout = job.reward, job.rollout
    weights = dict(reward.functions)
    model: SequenceScorer | None = None
    if rl.reward_folder is not None:
        weights[MODEL] = reward.model_weight
        spec = RewardModelSpec(
            str(rl.reward_folder),
            job.train.precision,
            _threads(job),
            rollout.gpus_per_actor > 0 if reward.model_actors else job.cluster.gpu,
        )
        if reward.model_actors == 0:
            model = LocalRewardModel(spec)
        else:
            model = RewardModelPool(
                spec,
                actors=reward.model_actors,
                cpus_per_actor=rollout.cpus_per_actor,
                gpus_per_actor=rollout.gpus_per_actor,
                timeout_s=rollout.timeout_s,
                scheduling_strategies=rl.scheduling_strategies[rollout.actors :],
            )
    scorer = Scorer(list(reward.functions), workers=reward.workers, timeout_s=reward.timeout_s)
    combination = Combination(weights, rollout.max_new_tokens, reward.length_penalty)
    encoder = load_chat_encoder(prepared.tokenizer_folder)
    assert encoder is not None, "prompts are prepared with a chat template"
    return RewardComputer(scorer, combination, model, encoder.end_of_turn_id, closing_ids(encoder))


def _threads(job: RlhfJob) -> int:
    # Taken from the configuration and not from the machine, because results depend on it in the last bits.
    return job.rollout.threads or max(1, int(job.rollout.cpus_per_actor))


def _storage_path(job: RlhfJob, folder: str | None) -> Path | None:
    return None if folder is None else job.storage.folder / folder
