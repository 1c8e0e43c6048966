"""Collection of a step's rollouts: answers sampled by a pool of engines, with their rewards.

Only the first rank talks to the samplers and the reward computer; all ranks receive the result. Batches and
seeds are planned from (step, sample ids), so the result doesn't depend on which actor samples what.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from raymill.data.prompts.metadata import PromptRecord
from raymill.data.store.rows import Rows
from raymill.engine.group import WorkerGroup, on_rank_zero, raise_together
from raymill.engine.trainer import gathered_parameters
from raymill.errors import DataError
from raymill.evaluate.reasoning import PROMPT_END, opens_reasoning
from raymill.model.merged import merged_weights
from raymill.rl.reward.computer import CombinedRewards, RewardComputer, metric_name
from raymill.rl.reward.task import Sample
from raymill.rl.rollout.engine import Sampling, plan_batches
from raymill.rl.rollout.pool import Pool
from raymill.rl.rollout.record import RolloutRecord, read_rollout, rollout_path, write_rollout
from raymill.rl.rollout_batch import RolloutBatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Name of the combined reward among the components of a record.
TOTAL = "total"


@dataclass(frozen=True)
class StepPrompt:
    """Prompt drawn for a step; `record` is its number in the prompts' metadata."""

    sample_id: int
    record: int
    ids: tuple[int, ...]

    @classmethod
    def from_rows(cls, sample_id: npt.NDArray[np.int64], rows: Rows) -> list[StepPrompt]:
        """Return the prompts of a rank's rows."""
        assert rows.record is not None, "rows of prompts carry record numbers"
        return [
            cls(int(sample), int(record), tuple(tokens[:length].tolist()))
            for sample, record, tokens, length in zip(
                sample_id, rows.record, rows.tokens, rows.length, strict=True
            )
        ]


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

    def to_batch(self, indices: npt.NDArray[np.int64]) -> RolloutBatch:
        """Return the answers of these indices as tensors."""
        rollout, chosen = self.rollout, indices.tolist()
        return RolloutBatch.from_columns(
            [rollout.prompts[index].tolist() for index in chosen],
            [rollout.answers[index].tolist() for index in chosen],
            [rollout.log_probs[index].tolist() for index in chosen],
        )


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

    def collect(
        self, step: int, prompts: Sequence[StepPrompt], group_size: int, sampling: Sampling
    ) -> ScoredRollouts:
        """Wait for the answers of a step and compute their rewards, or load its record.

        Negative steps are held-out evaluations, which are neither saved nor loaded.
        """
        started = time.perf_counter()
        if self.load_from is not None and step >= 0:
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
        combined = self.compute_rewards(rollout, prompts)
        seconds = {
            "generate": generation.seconds,
            "wait": waited,
            "judge": time.perf_counter() - started,
        }
        rewards = _with_nan(combined.rewards)
        components = {name: _with_nan(values) for name, values in combined.components.items()}
        if self.save_to is not None and step >= 0:
            scored = rollout.with_rewards({**components, TOTAL: rewards})
            write_rollout(rollout_path(self.save_to, step), scored)
        incidents = (*map(str, generation.incidents), *combined.incidents)
        return ScoredRollouts(rollout, rewards, components, combined.causes, seconds, incidents)

    def compute_rewards(
        self, rollout: RolloutRecord, prompts: Sequence[StepPrompt]
    ) -> CombinedRewards:
        """Compute the rewards of sampled answers, with the data of their prompts' records."""
        record = {prompt.sample_id: prompt.record for prompt in prompts}
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
        self.reward_computer.close()


@dataclass
class RolloutCollector:
    """Sampling of rollouts by all ranks together: every rank calls every method in the same order.

    `model` is the policy; `backend` is the first rank's, and None on the others.
    """

    model: PreTrainedModel
    group: WorkerGroup
    sampling: Sampling
    batch: int
    seed: int
    backend: RolloutBackend | None
    # Version of the weights that the samplers have.
    version: int | None = field(default=None, init=False)
    # Duration of the last `sync_weights`.
    sync_s: float = field(default=0.0, init=False)
    # Incidents that haven't been logged yet.
    incidents: list[str] = field(default_factory=list, init=False)
    # Arguments of the last `start`, and its result once it has been collected from the backend.
    _pending: tuple[int, list[StepPrompt], int] | None = field(default=None, init=False)
    _result: ScoredRollouts | None = field(default=None, init=False)

    def sync_weights(self, version: int) -> None:
        """Send the policy's weights to the samplers, unless they have this version.

        Raises:
            RolloutError: on all ranks; an engine doesn't hold the weights that were sent.
        """
        if version == self.version:
            self.sync_s = 0.0
            return
        self._finish()
        weights = merged_weights(self.model, gathered_parameters)

        def send() -> tuple[float, tuple[str, ...]]:
            assert self.backend is not None, "the first rank has a backend"
            try:
                report = self.backend.pool.sync(weights, version)
            finally:
                # The other ranks iterate all weights, each of which is gathered by all ranks together.
                for _ in weights:
                    pass
            return report.seconds, tuple(map(str, report.incidents))

        if self.group.rank > 0:
            for _ in weights:
                pass
        self.sync_s, lost = on_rank_zero(self.group, send)
        self.incidents += lost
        self.version = version

    def start(self, step: int, prompts: Sequence[StepPrompt], group_size: int) -> None:
        """Start sampling `group_size` answers per prompt; `collect` waits for them."""
        batches = plan_batches(
            {prompt.sample_id: prompt.ids for prompt in prompts},
            group_size=group_size,
            batch=self.batch,
            seed=self.seed,
            step=step,
        )
        with _errors_on_all_ranks(self.group):
            if self.backend is not None and (self.backend.load_from is None or step < 0):
                self.backend.pool.start_generate(batches, self.sampling)
        self._pending = (step, list(prompts), group_size)

    @property
    def pending_step(self) -> int | None:
        """Step whose answers have been started and not collected."""
        return None if self._pending is None else self._pending[0]

    def collect(self) -> ScoredRollouts:
        """Wait for the answers that were started, with their rewards; the same on all ranks."""
        self._finish()
        scored, self._result, self._pending = self._result, None, None
        assert scored is not None, "collect follows start"
        self.incidents += scored.incidents
        return scored

    def sample(self, step: int, prompts: Sequence[StepPrompt], group_size: int) -> ScoredRollouts:
        """Start and collect, leaving answers that are pending for a later `collect`.

        Negative steps are held-out evaluations, which are neither saved nor loaded.
        """
        self._finish()
        pending = self._pending, self._result
        self._pending = self._result = None
        self.start(step, prompts, group_size)
        scored = self.collect()
        self._pending, self._result = pending
        return scored

    def close(self) -> None:
        """End samplers and reward computer."""
        if self.backend is not None:
            self.backend.close()

    def _finish(self) -> None:
        """Wait for pending answers, so that the samplers are free, and keep them for `collect`."""
        if self._pending is None or self._result is not None:
            return
        step, prompts, group_size = self._pending

        def collect() -> ScoredRollouts:
            assert self.backend is not None, "the first rank has a backend"
            return self.backend.collect(step, prompts, group_size, self.sampling)

        self._result = on_rank_zero(self.group, collect)


@contextmanager
def _errors_on_all_ranks(group: WorkerGroup) -> Iterator[None]:
    """Context whose errors on any rank are raised on all ranks; collective at its end."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:  # noqa: BLE001  (raised again on all ranks)
        error = raised
    [failed] = group.sum(error is not None)
    if failed:
        raise_together(group, error)


def _check_loaded(
    path: Path,
    rollout: RolloutRecord,
    step: int,
    prompts: Sequence[StepPrompt],
    group_size: int,
    sampling: Sampling,
) -> None:
    """Check that a loaded record holds the answers that would have been sampled.

    Raises:
        DataError: it has other prompts, other sampling settings, or no rewards.
    """
    expected = [
        (prompt.sample_id, number, prompt.ids)
        for prompt in sorted(prompts, key=lambda prompt: prompt.sample_id)
        for number in range(group_size)
    ]
    loaded = [
        (sample_id, number, tuple(ids.tolist()))
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


def _with_nan(values: Sequence[float | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
