"""Interface of the engines that sample answers: their batches, settings, results and errors.

Engines take and return tokens, never text: an answer that is decoded and encoded again may consist of other
tokens than those that were drawn, with other probabilities.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from raymill.errors import RaymillError
from raymill.generate.batch import Completion

if TYPE_CHECKING:
    from raymill.rl.rollout.weights import TensorBucket

Dtype = Literal["fp32", "bf16"]
# Time for an actor to be scheduled, and to import its libraries.
START_TIMEOUT_S = 300.0
# Result of one sequence: a completion of sampling engines, a score of reward models.
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class RolloutError(RaymillError):
    """Answers can't be sampled, or would come from other weights than the policy's."""


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling.

    `pad_id` decides nothing; it belongs to the digest by which stored rollouts are checked.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    stop_ids: tuple[int, ...]
    pad_id: int = 0


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are answered together, each with the key and the seed of its answer.

    A model's output for a row depends, in the last bits, on the other rows of its batch. So batches are planned
    from a step's prompts alone, and results are the same with any number of actors.
    """

    # (sample id, number of the answer in its group)
    answers: tuple[tuple[int, int], ...]
    prompts: tuple[tuple[int, ...], ...]
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        first, last = ("/".join(map(str, self.answers[index])) for index in (0, -1))
        return f"batch of {len(self.answers)} answers (sample/number {first} to {last})"


def plan_batches(
    prompts: Mapping[int, Sequence[int]], *, group_size: int, batch: int, seed: int, step: int
) -> list[PromptBatch]:
    """Plan `group_size` answers to each of `prompts` (sample id → tokens), in batches of `batch` answers.

    Long prompts come first: prompts of similar length share a batch and waste little padding, and the longest
    work isn't started last.

    Raises:
        ValueError: `group_size` or `batch` is below 1, or a prompt is empty.
    """
    if min(group_size, batch) < 1:
        raise ValueError(f"group_size={group_size} and batch={batch} must be at least 1")
    empty = [sample for sample, prompt in prompts.items() if not prompt]
    if empty:
        raise ValueError(f"the prompts of samples {empty[:8]} are empty")
    ordered = sorted(prompts, key=lambda sample: (-len(prompts[sample]), sample))
    answers = [(sample, number) for sample in ordered for number in range(group_size)]
    return [
        PromptBatch(
            answers=tuple(part),
            prompts=tuple(tuple(prompts[sample]) for sample, _ in part),
            seeds=tuple(answer_seed(seed, step, *answer) for answer in part),
        )
        for part in (answers[start : start + batch] for start in range(0, len(answers), batch))
    ]


def answer_seed(seed: int, step: int, sample_id: int, number: int) -> int:
    """Return a 63-bit seed of one answer, so that its tokens don't depend on the order of sampling."""
    digest = hashlib.sha256(f"answer {seed} {step} {sample_id} {number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Engine(Protocol[R_co]):
    """Model in an actor or in this process, which processes batches."""

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> Sequence[R_co]:
        """Return one result per prompt, all computed as one batch.

        Equal arguments and weights give equal results, bit for bit, on equal hardware. Sampling engines return
        completions with the log-probabilities of their tokens.

        Raises:
            RolloutError: there are no weights yet, or a prompt leaves no positions for its answer.
        """
        ...

    def load(self, buckets: Iterable[TensorBucket]) -> None:
        """Replace all weights.

        Raises:
            RolloutError: they aren't exactly the model's.
        """
        ...

    def digest(self) -> str:
        """Return `weights_digest` of the weights that the engine holds."""
        ...


class EngineSpec(Protocol[R_co]):
    """Recipe for an engine, to be pickled and built in another process."""

    @property
    def dtype(self) -> Dtype:
        """Type that weights are converted to before they are sent."""
        ...

    def build(self) -> Engine[R_co]:
        """Build an engine without weights."""
        ...


@dataclass(frozen=True)
class Incident:
    """Loss of an actor, which was replaced; its work is given to another actor."""

    # Role, number and id of the actor.
    actor: str
    # Host, node and process.
    place: str
    work: str
    reason: str

    def __str__(self) -> str:
        return f"{self.actor} on {self.place} was lost {self.work}: {self.reason}"


@dataclass(frozen=True, eq=False)
class RolloutAnswer:
    """Tokens of an answer, with the log-probabilities with which they were drawn."""

    ids: npt.NDArray[np.int32]
    log_probs: npt.NDArray[np.float32]
    stopped: bool  # by a stop token


@dataclass(frozen=True, eq=False)
class BatchAnswers(Sequence[RolloutAnswer]):
    """Answers of a batch as few arrays, which the object store passes on without copying."""

    ids: npt.NDArray[np.int32]  # of all answers, one after the other
    log_probs: npt.NDArray[np.float32]  # of all answers' tokens
    ends: npt.NDArray[np.int64]  # number of tokens up to the end of each answer
    stopped: npt.NDArray[np.bool_]

    @classmethod
    def from_completions(cls, completions: Sequence[Completion]) -> BatchAnswers:
        """Return an engine's completions as arrays."""
        return cls(
            np.array([i for one in completions for i in one.ids], dtype=np.int32),
            np.array([p for one in completions for p in one.log_probs], dtype=np.float32),
            np.cumsum([len(one.ids) for one in completions], dtype=np.int64),
            np.array([one.finish == "stop" for one in completions], dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> RolloutAnswer: ...
    @overload
    def __getitem__(self, index: slice) -> list[RolloutAnswer]: ...
    def __getitem__(self, index: int | slice) -> RolloutAnswer | list[RolloutAnswer]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        tokens = slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))
        return RolloutAnswer(self.ids[tokens], self.log_probs[tokens], bool(self.stopped[index]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BatchAnswers) and all(
            np.array_equal(own, others)
            for own, others in zip(vars(self).values(), vars(other).values(), strict=True)
        )


@dataclass(frozen=True)
class BatchResult(Generic[R]):
    """One result per prompt of a batch, and the version of the weights that computed them."""

    batch: PromptBatch
    completions: Sequence[R]
    version: int


# Called with the number of a batch and its result, in the thread that waits for it.
OnResult = Callable[[int, BatchResult[R]], None]


@dataclass(frozen=True)
class Generation(Generic[R]):
    """Results of all batches, in the order of the plan."""

    results: tuple[BatchResult[R], ...]
    seconds: float
    incidents: tuple[Incident, ...] = ()


def require_digest(actual: str, expected: str, holder: str) -> None:
    """Check the digest of weights that arrived.

    Raises:
        RolloutError: they aren't the weights that were sent.
    """
    if actual != expected:
        raise RolloutError(
            f"{holder} holds weights with digest {actual[:12]}, the policy sent {expected[:12]}: its "
            "samples wouldn't be the policy's, so nothing was sampled"
        )
