"""Answers for prompts, sampled by engines and judged: what a step of reinforcement learning is made from.

The first rank alone talks to samplers and judges; all ranks hear the result. What shares a batch and which
seeds draw is planned from (step, sample ids), so that nothing depends on who does the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raymill.data.prompts.metadata import PromptRecord
from raymill.data.store.rows import Rows
from raymill.engine.agreement import on_rank_zero
from raymill.engine.group import WorkerGroup
from raymill.engine.trainer import gathered
from raymill.errors import DataError
from raymill.evaluate.reasoning import PROMPT_END, opens_reasoning
from raymill.model.merged import merged_weights
from raymill.rl.reward.combine import Combined, metric_name
from raymill.rl.reward.computer import RewardComputer
from raymill.rl.reward.task import Sample
from raymill.rl.rollout.batches import plan_units
from raymill.rl.rollout.engine import Sampling
from raymill.rl.rollout.interface import Pool
from raymill.rl.rollout.record import RolloutRecord, read_rollout, rollout_path, write_rollout
from raymill.rl.rollout_batch import RolloutBatch

TOTAL = "total"  # the combined reward's name among the components of a record


@dataclass(frozen=True)
class Prompt:
    """A prompt that was drawn."""

    sample_id: int
    record: int  # its number in the book
    ids: tuple[int, ...]

    @classmethod
    def of(cls, sample_id: npt.NDArray[np.int64], rows: Rows) -> list[Prompt]:
        """The prompts of a rank's rows."""
        assert rows.record is not None
        return [
            cls(int(sample), int(record), tuple(tokens[:length].tolist()))
            for sample, record, tokens, length in zip(
                sample_id, rows.record, rows.tokens, rows.length, strict=True
            )
        ]


@dataclass(frozen=True)
class ScoredRollouts:
    """A step's answers and what they are worth, in the order of (sample id, number)."""

    rollout: RolloutRecord
    rewards: npt.NDArray[np.float64]  # [N] NaN: dropped
    components: dict[str, npt.NDArray[np.float64]]  # [N] each
    causes: dict[str, int]  # why answers were dropped
    seconds: dict[str, float]  # by phase
    incidents: tuple[str, ...] = ()

    def figures(self, prefix: str) -> dict[str, float]:
        """What the answers are like, as it is logged: `{prefix}/reward`, `{prefix}/length`, …"""
        lengths = [len(ids) for ids in self.rollout.answers]
        figures = {
            f"{prefix}/length": float(np.mean(lengths)),
            f"{prefix}/truncated": float(1 - self.rollout.stopped.mean()),
            f"{prefix}/dropped": float(np.isnan(self.rewards).sum()),
        }
        parts = {f"/{metric_name(name)}": v for name, v in self.components.items()}
        named = {"": self.rewards, **parts}
        for name, values in named.items():
            known = values[~np.isnan(values)]
            if len(known):
                figures[f"{prefix}/reward{name}"] = float(known.mean())
        return figures

    def taken(self, places: npt.NDArray[np.int64]) -> RolloutBatch:
        """The answers at these places, to learn from."""
        rollout, chosen = self.rollout, places.tolist()
        return RolloutBatch.of(
            [rollout.prompts[place].tolist() for place in chosen],
            [rollout.answers[place].tolist() for place in chosen],
            [rollout.log_probs[place].tolist() for place in chosen],
        )


@dataclass
class RolloutBackend:
    """What only the first rank has."""

    pool: Pool
    judge: RewardComputer
    book: Mapping[int, PromptRecord]
    decode: Callable[[Sequence[Sequence[int]]], list[str]]
    dump: Path | None = None
    replay: Path | None = None

    def close(self) -> None:
        """End samplers and judges."""
        self.pool.close()
        self.judge.close()


@dataclass
class RolloutCollector:
    """Collective throughout: every rank calls every method in step. `backend` is the first rank's."""

    model: Any  # the policy
    group: WorkerGroup
    sampling: Sampling
    batch: int
    seed: int
    backend: RolloutBackend | None
    version: int | None = field(default=None, init=False)  # of the weights that the samplers have
    sync_s: float = field(default=0.0, init=False)
    incidents: list[str] = field(default_factory=list, init=False)  # not told yet
    _begun: tuple[int, list[Prompt], int] | None = field(default=None, init=False)
    _settled: ScoredRollouts | None = field(default=None, init=False)

    def sync(self, version: int) -> None:
        """Bring the policy's weights to the samplers, unless they have this version.

        Raises:
            RolloutError: on all ranks; an engine doesn't hold what was sent.
        """
        if version == self.version:
            self.sync_s = 0.0
            return
        self.settle()
        weights = merged_weights(self.model, gathered)

        def send() -> tuple[float, tuple[str, ...]]:
            assert self.backend is not None
            try:
                report = self.backend.pool.sync(weights, version)
            finally:
                for _ in weights:  # the other ranks go through all of them
                    pass
            return report.seconds, tuple(map(str, report.incidents))

        if self.group.rank > 0:
            for _ in weights:
                pass
        self.sync_s, lost = on_rank_zero(self.group, send)
        self.incidents += lost
        self.version = version

    def begin(self, step: int, prompts: Sequence[Prompt], group_size: int) -> None:
        """Start sampling; `collect` waits for it."""
        units = plan_units(
            {prompt.sample_id: prompt.ids for prompt in prompts},
            group=group_size,
            batch=self.batch,
            seed=self.seed,
            step=step,
        )

        def start() -> None:
            assert self.backend is not None
            if self.backend.replay is None or step < 0:
                self.backend.pool.start_generate(units, self.sampling)

        on_rank_zero(self.group, start)
        self._begun = (step, list(prompts), group_size)

    @property
    def begun(self) -> int | None:
        """The step whose answers are under way, or there already."""
        return None if self._begun is None else self._begun[0]

    def settle(self) -> None:
        """Wait for what is under way, so that the samplers are free; `collect` gives it out later."""
        if self._begun is not None and self._settled is None:
            self._settled = self._collected(*self._begun)

    def collect(self) -> ScoredRollouts:
        """The answers that were begun, judged; the same on all ranks."""
        self.settle()
        judged, self._settled, self._begun = self._settled, None, None
        assert judged is not None  # something was begun
        self.incidents += judged.incidents
        return judged

    def _collected(self, step: int, prompts: Sequence[Prompt], group_size: int) -> ScoredRollouts:
        def finish() -> ScoredRollouts:
            assert self.backend is not None
            return _finished(self.backend, step, prompts, group_size, self.sampling)

        return on_rank_zero(self.group, finish)

    def sample(self, step: int, prompts: Sequence[Prompt], group_size: int) -> ScoredRollouts:
        """Begin and wait, whatever else is under way. Negative steps are held-out evaluations: they are
        neither dumped nor replayed."""
        self.settle()
        aside = self._begun, self._settled
        self._begun = self._settled = None
        self.begin(step, prompts, group_size)
        judged = self.collect()
        self._begun, self._settled = aside
        return judged

    def close(self) -> None:
        """End samplers and judges."""
        if self.backend is not None:
            self.backend.close()


def _finished(
    backend: RolloutBackend,
    step: int,
    prompts: Sequence[Prompt],
    group_size: int,
    sampling: Sampling,
) -> ScoredRollouts:
    began = time.perf_counter()
    if backend.replay is not None and step >= 0:
        return _replayed(backend.replay, step, prompts, group_size, sampling, began)
    generation = backend.pool.collect()
    rollout = RolloutRecord.of(step, sampling, generation.results)
    waited = time.perf_counter() - began
    began = time.perf_counter()
    combined = _judged(backend, rollout, prompts, sampling)
    seconds = {
        "generate": generation.seconds,
        "wait": waited,
        "judge": time.perf_counter() - began,
    }
    rewards = _array(combined.rewards)
    components = {name: _array(values) for name, values in combined.components.items()}
    if backend.dump is not None and step >= 0:
        named = {**components, TOTAL: rewards}
        write_rollout(rollout_path(backend.dump, step), rollout.with_rewards(named))  # type: ignore[arg-type]
    incidents = (*map(str, generation.incidents), *combined.incidents)
    return ScoredRollouts(rollout, rewards, components, combined.causes, seconds, incidents)


def _judged(
    backend: RolloutBackend, rollout: RolloutRecord, prompts: Sequence[Prompt], sampling: Sampling
) -> Combined:
    record = {prompt.sample_id: prompt.record for prompt in prompts}
    stops = set(sampling.stop_ids)
    answers = [tuple(ids.tolist()) for ids in rollout.answers]
    texts = backend.decode([[i for i in ids if i not in stops] for ids in answers])
    ends = backend.decode([prompt[-PROMPT_END:].tolist() for prompt in rollout.prompts])
    samples = []
    for sample_id, ids, text, end, stopped in zip(
        rollout.sample_id.tolist(), answers, texts, ends, rollout.stopped.tolist(), strict=True
    ):
        entry = backend.book[record[sample_id]]
        samples.append(
            Sample(
                entry.messages,
                text.strip(),
                ids,
                entry.answer,
                entry.verifier,
                entry.extra,
                bool(stopped),
                opens_reasoning(end),
            )
        )
    sequences = [
        [*prompt.tolist(), *ids] for prompt, ids in zip(rollout.prompts, answers, strict=True)
    ]
    return backend.judge.judge(samples, sequences)


def _replayed(
    folder: Path,
    step: int,
    prompts: Sequence[Prompt],
    group_size: int,
    sampling: Sampling,
    began: float,
) -> ScoredRollouts:
    path = rollout_path(folder, step)
    rollout = read_rollout(path)
    expected = [
        (prompt.sample_id, number, prompt.ids)
        for prompt in sorted(prompts, key=lambda prompt: prompt.sample_id)
        for number in range(group_size)
    ]
    found = [
        (sample_id, number, tuple(ids.tolist()))
        for sample_id, number, ids in zip(
            rollout.sample_id.tolist(), rollout.number.tolist(), rollout.prompts, strict=True
        )
    ]
    if found != expected:
        raise DataError(
            f"{path} holds other answers than step {step} asks for: {len(found)}, to prompts of samples "
            f"{sorted({one[0] for one in found})[:4]} …, not {len(expected)}, to samples "
            f"{sorted({one[0] for one in expected})[:4]} …; replay with the data, seed, batch and group "
            "that they were dumped with"
        )
    if rollout.sampling != sampling:
        raise DataError(
            f"{path} was sampled with {rollout.sampling}, not {sampling}; replay with these settings"
        )
    if TOTAL not in rollout.rewards:
        raise DataError(f"{path} holds no rewards; dump it again with rollout.save_to")
    components = {name: v for name, v in rollout.rewards.items() if name != TOTAL}
    seconds = {"generate": 0.0, "wait": time.perf_counter() - began, "judge": 0.0}
    return ScoredRollouts(rollout, rollout.rewards[TOTAL], components, {}, seconds)


def _array(values: Sequence[float | None]) -> npt.NDArray[np.float64]:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
