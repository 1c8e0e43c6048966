"""Samplers and reward computer of a run, which rank 0 has: a step's answers with their rewards."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raymill.data.prompts.metadata import PromptRecord
from raymill.engine.batches import Floats
from raymill.errors import DataError
from raymill.evaluate.reasoning import PROMPT_END, opens_reasoning
from raymill.rl.reward.computer import CombinedRewards, RewardComputer, metric_name
from raymill.rl.reward.task import Sample
from raymill.rl.rollout.engine import BatchResult, PromptBatch, RolloutAnswer, Sampling
from raymill.rl.rollout.pool import Pool
from raymill.rl.rollout.record import RolloutRecord, read_rollout, rollout_path, write_rollout
from raymill.rl.shares import StepPrompts

# Name of the combined reward among the components of a record.
TOTAL = "total"


@dataclass(frozen=True)
class ScoredRollouts:
    """Answers of a step with their rewards, in the order of (sample id, number)."""

    rollout: RolloutRecord
    rewards: npt.NDArray[np.float64]  # [N] NaN: dropped
    components: dict[str, npt.NDArray[np.float64]]  # [N] each
    causes: dict[str, int]  # reasons for dropped answers, with their counts
    seconds: dict[str, float]  # by phase
    incidents: tuple[str, ...] = ()

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return metrics of the answers under names such as `{prefix}/reward` and `{prefix}/length`."""
        lengths = [len(ids) for ids in self.rollout.answers]
        metrics = {
            f"{prefix}/length": float(np.mean(lengths)),
            f"{prefix}/truncated": float(1 - self.rollout.stopped.mean()),
            f"{prefix}/dropped": float(np.isnan(self.rewards).sum()),
        }
        parts = {f"/{metric_name(name)}": v for name, v in self.components.items()}
        for name, values in {"": self.rewards, **parts}.items():
            known = values[~np.isnan(values)]
            if len(known):
                metrics[f"{prefix}/reward{name}"] = float(known.mean())
        return metrics


@dataclass
class RolloutBackend:
    """Samplers and reward computer, which only the first rank has.

    `prompt_metadata`: prompts by record number. `save_to`: folder to write each step's record to.
    `load_from`: folder of records that take the place of sampling.
    """

    pool: Pool
    reward_computer: RewardComputer
    prompt_metadata: Mapping[int, PromptRecord]
    decode: Callable[[Sequence[Sequence[int]]], list[str]]
    save_to: Path | None = None
    load_from: Path | None = None
    # Rewards under way, by the number of the batch; one thread asks for them in the order of arrival.
    _judged: dict[int, Future[CombinedRewards]] = field(default_factory=dict, init=False)
    _judge: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="judge"), init=False
    )

    def start(
        self,
        step: int,
        prompts: StepPrompts,
        batches: Sequence[PromptBatch],
        sampling: Sampling,
    ) -> None:
        """Start sampling, unless the step's record is loaded; `collect` waits for it.

        Each batch is judged when it is sampled, while others are being sampled; in one process, where judging
        and sampling would compete, only in `collect`.
        """
        if self._loads(step):
            return
        self._judged.clear()

        def judge(number: int, result: BatchResult[RolloutAnswer]) -> None:
            self._judged[number] = self._judge.submit(
                self.compute_rewards,
                RolloutRecord.from_results(step, sampling, [result]),
                prompts,
            )

        beside = self.reward_computer.beside_sampling
        self.pool.start_generate(batches, sampling, judge if beside else None)

    def collect(
        self, step: int, prompts: StepPrompts, group_size: int, sampling: Sampling
    ) -> ScoredRollouts:
        """Wait for the answers of a step and their rewards, or load its record.

        Negative steps are held-out evaluations, which are neither saved nor loaded.
        """
        started = time.perf_counter()
        if self._loads(step):
            assert self.load_from is not None, "records are loaded from a folder"
            path = rollout_path(self.load_from, step)
            rollout = read_rollout(path)
            _check_loaded(path, rollout, step, prompts, group_size, sampling)
            components = {name: v for name, v in rollout.rewards.items() if name != TOTAL}
            seconds = {"generate": 0.0, "wait": time.perf_counter() - started, "judge": 0.0}
            return ScoredRollouts(rollout, rollout.rewards[TOTAL], components, {}, seconds)
        generation = self.pool.collect()
        rollout = RolloutRecord.from_results(step, sampling, generation.results)
        waited = time.perf_counter() - started
        started = time.perf_counter()
        combined = [
            self._judged.pop(number).result()
            if number in self._judged
            else self.compute_rewards(RolloutRecord.from_results(step, sampling, [result]), prompts)
            for number, result in enumerate(generation.results)
        ]
        seconds = {
            "generate": generation.seconds,
            "wait": waited,
            "judge": time.perf_counter() - started,
        }
        rewards, components, causes = _in_order(rollout, generation.results, combined)
        if self.save_to is not None and step >= 0:
            scored = rollout.with_rewards({**components, TOTAL: rewards})
            write_rollout(rollout_path(self.save_to, step), scored)
        incidents = (
            *map(str, generation.incidents),
            *(incident for part in combined for incident in part.incidents),
        )
        return ScoredRollouts(rollout, rewards, components, causes, seconds, incidents)

    def _loads(self, step: int) -> bool:
        return self.load_from is not None and step >= 0

    def compute_rewards(self, rollout: RolloutRecord, prompts: StepPrompts) -> CombinedRewards:
        """Compute the rewards of sampled answers, with the data of their prompts' records."""
        record = dict(zip(prompts.sample_id.tolist(), prompts.record.tolist(), strict=True))
        stops = set(rollout.sampling.stop_ids)
        answers = [tuple(ids.tolist()) for ids in rollout.answers]
        texts = self.decode([[i for i in ids if i not in stops] for ids in answers])
        ends = self.decode([prompt[-PROMPT_END:].tolist() for prompt in rollout.prompts])
        samples = []
        for sample_id, ids, text, end, stopped in zip(
            rollout.sample_id.tolist(), answers, texts, ends, rollout.stopped.tolist(), strict=True
        ):
            metadata = self.prompt_metadata[record[sample_id]]
            samples.append(
                Sample(
                    prompt_messages=metadata.messages,
                    answer_text=text.strip(),
                    answer_ids=ids,
                    reference=metadata.answer,
                    verifier=metadata.verifier,
                    extra=metadata.extra,
                    finished=bool(stopped),
                    in_reasoning=opens_reasoning(end),
                )
            )
        sequences = [
            [*prompt.tolist(), *ids] for prompt, ids in zip(rollout.prompts, answers, strict=True)
        ]
        return self.reward_computer.compute(samples, sequences)

    def close(self) -> None:
        """End samplers and reward computer."""
        self.pool.close()
        self._judge.shutdown(wait=False, cancel_futures=True)
        self.reward_computer.close()


def _check_loaded(
    path: Path,
    rollout: RolloutRecord,
    step: int,
    prompts: StepPrompts,
    group_size: int,
    sampling: Sampling,
) -> None:
    """Check that a loaded record holds the answers that would have been sampled.

    Raises:
        DataError: it has other prompts, other sampling settings, or no rewards.
    """
    expected = [
        (sample_id, number, ids)
        for sample_id, ids in sorted(prompts.by_sample().items())
        for number in range(group_size)
    ]
    loaded = [
        (sample_id, number, ids.tolist())
        for sample_id, number, ids in zip(
            rollout.sample_id.tolist(), rollout.number.tolist(), rollout.prompts, strict=True
        )
    ]
    if loaded != expected:
        raise DataError(
            f"{path} holds other answers than step {step} needs: {len(loaded)}, to prompts of samples "
            f"{sorted({sample for sample, _, _ in loaded})[:4]} …, not {len(expected)}, to samples "
            f"{sorted({sample for sample, _, _ in expected})[:4]} …; use the data, seed, batch and group "
            "that they were saved with"
        )
    if rollout.sampling != sampling:
        raise DataError(
            f"{path} was sampled with {rollout.sampling}, not {sampling}; use its settings"
        )
    if TOTAL not in rollout.rewards:
        raise DataError(f"{path} holds no rewards; save it again with rollout.save_to")


def _in_order(
    rollout: RolloutRecord,
    results: Sequence[BatchResult[RolloutAnswer]],
    combined: Sequence[CombinedRewards],
) -> tuple[Floats, dict[str, Floats], dict[str, int]]:
    """Return rewards, their components and causes of batches in the order of a record of all batches."""
    # Within a batch, answers were judged in the order of a record, too.
    answers = [answer for result in results for answer in sorted(result.batch.answers)]
    place = {answer: number for number, answer in enumerate(answers)}
    ordered = np.array(
        [
            place[answer]
            for answer in zip(rollout.sample_id.tolist(), rollout.number.tolist(), strict=True)
        ],
        dtype=np.int64,
    )

    def joined(columns: Iterable[Sequence[float | None]]) -> Floats:
        values = [value for column in columns for value in column]
        return _with_nan(values)[ordered]

    names = list(combined[0].components) if combined else []
    causes: Counter[str] = Counter()
    for part in combined:
        causes.update(part.causes)
    components = {name: joined(part.components[name] for part in combined) for name in names}
    return joined(part.rewards for part in combined), components, dict(causes)


def _with_nan(values: Sequence[float | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
