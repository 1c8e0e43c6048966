"""Collection of a step's rollouts: prompts go to rank 0, and every rank receives its share of the answers.

Only rank 0 talks to the samplers and the reward computer. Prompts and answers travel as arrays, each token once
to rank 0 and once from it. Batches and seeds are planned from (step, sample ids), so the result doesn't depend
on which actor samples what.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from raymill.engine.batches import Ints
from raymill.engine.group import WorkerGroup, on_rank_zero, raise_together
from raymill.engine.trainer import gathered_parameters
from raymill.model.merged import merged_weights
from raymill.rl.rollout.engine import Sampling, plan_batches
from raymill.rl.rollout_backend import RolloutBackend, ScoredRollouts
from raymill.rl.shares import AnswerShare, StepPrompts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    # Arguments of the last `start`, on rank 0 its result, and whether that was collected from the backend.
    _pending: tuple[int, StepPrompts | None, int] | None = field(default=None, init=False)
    _result: ScoredRollouts | None = field(default=None, init=False)
    _finished: bool = field(default=False, init=False)

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

    def gather_prompts(self, own: StepPrompts) -> StepPrompts | None:
        """Return the prompts of all ranks on rank 0, as one array; every rank has equally many."""
        width = self.group.largest(int(own.length.max(initial=0)))
        tables = self.group.gather_to_zero(own.table(width).tobytes())
        return StepPrompts.from_bytes(tables, width) if tables else None

    def start(self, step: int, prompts: StepPrompts | None, group_size: int) -> None:
        """Start sampling `group_size` answers per prompt, which rank 0 has; `collect` waits for them."""
        with _errors_on_all_ranks(self.group):
            if self.backend is not None:
                assert prompts is not None, "the first rank has all prompts"
                batches = plan_batches(
                    prompts.by_sample(),
                    group_size=group_size,
                    batch=self.batch,
                    seed=self.seed,
                    step=step,
                )
                self.backend.start(step, prompts, batches, self.sampling)
        self._pending = (step, prompts, group_size)

    @property
    def pending_step(self) -> int | None:
        """Step whose answers have been started and not collected."""
        return None if self._pending is None else self._pending[0]

    def collect(self) -> ScoredRollouts | None:
        """Wait for the answers that were started, with their rewards; return them on rank 0."""
        self._finish()
        scored, self._result, self._pending, self._finished = self._result, None, None, False
        if scored is not None:
            self.incidents += scored.incidents
        return scored

    def share(self, scored: ScoredRollouts | None, indices: Sequence[Ints] | None) -> AnswerShare:
        """Return this rank's share of the answers that rank 0 collected; rank 0 has all ranks' `indices`."""
        parts = None
        if scored is not None and indices is not None:
            parts = [AnswerShare.of(scored.rollout, scored.rewards, index) for index in indices]
        return self.group.scatter(parts)

    def sample(
        self, step: int, prompts: StepPrompts | None, group_size: int
    ) -> ScoredRollouts | None:
        """Start and collect, leaving answers that are pending for a later `collect`.

        Negative steps are held-out evaluations, which are neither saved nor loaded.
        """
        self._finish()
        pending = self._pending, self._result, self._finished
        self._pending, self._result, self._finished = None, None, False
        self.start(step, prompts, group_size)
        scored = self.collect()
        self._pending, self._result, self._finished = pending
        return scored

    def close(self) -> None:
        """End samplers and reward computer."""
        if self.backend is not None:
            self.backend.close()

    def _finish(self) -> None:
        """Wait for pending answers, so that the samplers are free, and keep them for `collect`."""
        if self._pending is None or self._finished:
            return
        step, prompts, group_size = self._pending

        def collect() -> None:
            assert self.backend is not None and prompts is not None, "the first rank has both"
            self._result = self.backend.collect(step, prompts, group_size, self.sampling)

        on_rank_zero(self.group, collect)
        self._finished = True


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
