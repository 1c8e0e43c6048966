"""The first rank's desk: samplers and judges as the configuration asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raymill.data.messages.folder import closing_ids, load_chat_encoder
from raymill.data.prompts.metadata import PromptRecord, read_book
from raymill.data.store.manifest import PreparedData, read_tokenizer
from raymill.data.store.rows import SOURCE_SHIFT
from raymill.engine.resolved_run import ResolvedRl, ResolvedRun
from raymill.errors import ConfigError
from raymill.objective.sequences import FLAT_KERNELS
from raymill.rl.reward.combine import Combination
from raymill.rl.reward.computer import MODEL, RewardComputer
from raymill.rl.reward.functions import AUTO
from raymill.rl.reward.model import LocalRewardModel, RewardModelSpec, SequenceJudge
from raymill.rl.reward.names import check_verifiers
from raymill.rl.reward.scoring import Scorer
from raymill.rl.rollout.engine import EngineSpec
from raymill.rl.rollout.interface import Pool
from raymill.rl.rollout.local import LocalPool
from raymill.rl.rollout.transformers_engine import ModelSpec
from raymill.rl.rollout.vllm_engine import VllmSpec
from raymill.rl.sampling import RolloutBackend
from raymill.schema.jobs import RlhfJob


def start_rollout_backend(
    resolved: ResolvedRun, job: RlhfJob, prepared: Sequence[PreparedData]
) -> RolloutBackend:
    """Start them.

    Raises:
        RaymillError: prompts name verifiers that aren't there, or processes can't be had.
    """
    assert resolved.rl is not None, "the driver resolves the part of reinforcement learning"
    book = _book(prepared)
    if AUTO in job.reward.functions:
        problems = check_verifiers(record.verifier for record in book.values())
        if all(record.verifier is None for record in book.values()):
            problems.append(
                "reward.functions: auto asks the prompts' own verifiers, and no prompt names one; set "
                "data.verifier, or name a function"
            )
        if problems:
            raise ConfigError(problems)
    return RolloutBackend(
        pool=_pool(resolved, resolved.rl, job, prepared[0]),
        judge=_judge(resolved.rl, job, prepared[0]),
        book=book,
        decode=_decoder(prepared[0]),
        dump=_below(job, job.rollout.save_to),
        replay=_below(job, job.rollout.load_from),
    )


def _book(prepared: Sequence[PreparedData]) -> dict[int, PromptRecord]:
    book: dict[int, PromptRecord] = {}
    for source, data in enumerate(prepared):
        facts = data.manifest.prompts
        assert facts is not None
        found = read_book(data.folder / facts.book)
        book |= {number + (source << SOURCE_SHIFT): entry for number, entry in found.items()}
    return book


def _pool(resolved: ResolvedRun, rl: ResolvedRl, job: RlhfJob, prepared: PreparedData) -> Pool:
    rollout, spec = job.rollout, _engine(resolved, job, prepared)
    if rollout.actors == 0:
        return LocalPool(spec)
    from raymill.rl.rollout.pool import RolloutPool

    return RolloutPool(
        spec,
        actors=rollout.actors,
        cpus_per_actor=rollout.cpus_per_actor,
        gpus_per_actor=rollout.gpus_per_actor,
        timeout_s=rollout.timeout_s,
        places=rl.scheduling_strategies[: rollout.actors],
    )


def _engine(resolved: ResolvedRun, job: RlhfJob, prepared: PreparedData) -> EngineSpec:
    rollout, facts = job.rollout, prepared.manifest
    assert resolved.model_folder is not None
    folder, vocab_size = str(resolved.model_folder), facts.tokenizer.vocab_size
    if rollout.engine == "vllm":
        return VllmSpec(
            folder=folder,
            vocab_size=vocab_size,
            dtype=job.train.precision,
            threads=_threads(job),
            batch=rollout.batch,
            max_tokens=facts.sequence_length + 1 + rollout.max_new_tokens,  # a row holds one more
            gpu=rollout.gpus_per_actor > 0,
        )
    gpu = rollout.gpus_per_actor > 0 or (rollout.actors == 0 and job.cluster.gpu)
    return ModelSpec(
        folder=folder,
        vocab_size=vocab_size,
        # Actors on CPUs may sample for a trainer on GPUs, whose kernels they don't have.
        attention="sdpa" if job.attention in FLAT_KERNELS and not gpu else job.attention,
        dtype=job.train.precision,
        threads=_threads(job),
        gpu=gpu,
    )


def _judge(rl: ResolvedRl, job: RlhfJob, prepared: PreparedData) -> RewardComputer:
    reward, rollout = job.reward, job.rollout
    weights = dict(reward.functions)
    model: SequenceJudge | None = None
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
            from raymill.rl.reward.model_pool import RewardModelPool

            model = RewardModelPool(
                spec,
                actors=reward.model_actors,
                cpus_per_actor=rollout.cpus_per_actor,
                gpus_per_actor=rollout.gpus_per_actor,
                timeout_s=rollout.timeout_s,
                places=rl.scheduling_strategies[rollout.actors :],
            )
    scorer = Scorer(list(reward.functions), workers=reward.workers, timeout_s=reward.timeout_s)
    combination = Combination(weights, rollout.max_new_tokens, reward.length_penalty)
    encoder = load_chat_encoder(prepared.tokenizer_folder)
    # Prompts are prepared with a template.
    assert encoder is not None
    return RewardComputer(scorer, combination, model, encoder.end_of_turn_id, closing_ids(encoder))


def _threads(job: RlhfJob) -> int:
    """Results depend on them in the last bits, so they are the configuration's and not the machine's."""
    return job.rollout.threads or max(1, int(job.rollout.cpus_per_actor))


def _below(job: RlhfJob, folder: str | None) -> Path | None:
    return None if folder is None else job.storage.folder / folder


def _decoder(prepared: PreparedData) -> Any:
    tokenizer = read_tokenizer(prepared.tokenizer_folder / "tokenizer.json")

    def decode(ids: Sequence[Sequence[int]]) -> list[str]:
        found: list[str] = tokenizer.decode_batch(
            [list(one) for one in ids], skip_special_tokens=False
        )
        return found

    return decode
