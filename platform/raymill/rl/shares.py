"""Prompts and answers of a step as arrays: gathered on rank 0, and shared out to the ranks that learn.

Legend: P prompts, L tokens of the longest, N answers.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raymill.data.store.rows import Rows
from raymill.engine.batches import Floats, Ints
from raymill.rl.rollout.record import RolloutRecord
from raymill.rl.rollout_batch import RolloutBatch


@dataclass(frozen=True, eq=False)
class StepPrompts:
    """Prompts drawn for a step, by sample id; `record` is a prompt's number in the prompts' metadata."""

    sample_id: Ints  # [P]
    record: Ints  # [P]
    length: Ints  # [P]
    tokens: Ints  # [P, L] padded with 0

    @classmethod
    def from_rows(cls, sample_id: Ints, rows: Rows) -> StepPrompts:
        """Return the prompts of rows."""
        assert rows.record is not None, "rows of prompts carry record numbers"
        length = rows.length.astype(np.int64)
        tokens = rows.tokens[:, : length.max(initial=1)].astype(np.int64)
        tokens[np.arange(tokens.shape[1]) >= length[:, None]] = 0
        return cls(sample_id, rows.record.astype(np.int64), length, tokens)

    @classmethod
    def from_bytes(cls, tables: Sequence[bytes], width: int) -> StepPrompts:
        """Return the prompts of all tables that `table` made with this width."""
        table_PK = np.frombuffer(b"".join(tables), dtype=np.int64).reshape(-1, 3 + width)
        ordered = table_PK[np.argsort(table_PK[:, 0], kind="stable")]
        return cls(ordered[:, 0], ordered[:, 1], ordered[:, 2], ordered[:, 3:])

    def __len__(self) -> int:
        return len(self.sample_id)

    def table(self, width: int) -> Ints:
        """[P, 3 + width] One row of numbers for each prompt."""
        table_PK = np.zeros((len(self), 3 + width), dtype=np.int64)
        table_PK[:, 0], table_PK[:, 1], table_PK[:, 2] = self.sample_id, self.record, self.length
        table_PK[:, 3 : 3 + self.tokens.shape[1]] = self.tokens
        return table_PK

    def by_sample(self) -> dict[int, list[int]]:
        """Return sample id → tokens."""
        return {
            sample: tokens[:length].tolist()
            for sample, tokens, length in zip(
                self.sample_id.tolist(), self.tokens, self.length.tolist(), strict=True
            )
        }


@dataclass(frozen=True, eq=False)
class AnswerShare:
    """Answers that one rank learns from, with their rewards; `index` is their place among the step's."""

    index: Ints  # [N]
    sample_id: Ints  # [N]
    rewards: Floats  # [N] NaN: dropped
    stopped: npt.NDArray[np.bool_]  # [N]
    prompts: tuple[npt.NDArray[np.int32], ...]  # N × tokens
    answers: tuple[npt.NDArray[np.int32], ...]  # N × tokens
    log_probs: tuple[npt.NDArray[np.float32], ...]  # N × the answer's tokens

    @classmethod
    def of(cls, rollout: RolloutRecord, rewards: Floats, index: Ints) -> AnswerShare:
        """Take the answers of these indices."""
        chosen = index.tolist()
        return cls(
            index,
            rollout.sample_id[index],
            rewards[index],
            rollout.stopped[index],
            tuple(rollout.prompts[number] for number in chosen),
            tuple(rollout.answers[number] for number in chosen),
            tuple(rollout.log_probs[number] for number in chosen),
        )

    def to_batch(self) -> RolloutBatch:
        """Return the answers as tensors."""
        return RolloutBatch.from_columns(self.prompts, self.answers, self.log_probs)


def share_groups(tokens_P: Ints, minibatches: int, world_size: int) -> list[Ints]:
    """Return the numbers of the prompts that each rank learns from, minibatch by minibatch.

    `tokens_P` counts the tokens of each prompt's answers. Neighboring prompts form a minibatch, so which
    answers share an update depends on nothing else. Of each minibatch every rank has equally many prompts, and
    about equally many tokens: the longest first, each to the rank that has the fewest tokens so far (LPT,
    Graham 1969).
    """
    size = len(tokens_P) // minibatches
    count = size // world_size
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for first in range(0, minibatches * size, size):
        numbers = np.arange(first, first + size)
        longest_first = numbers[np.argsort(-tokens_P[numbers], kind="stable")]
        taken: list[list[int]] = [[] for _ in range(world_size)]
        open_ranks = [(0, rank) for rank in range(world_size)]
        for number in longest_first.tolist():
            tokens, rank = heapq.heappop(open_ranks)
            taken[rank].append(number)
            if len(taken[rank]) < count:
                heapq.heappush(open_ranks, (tokens + int(tokens_P[number]), rank))
        for rank, of_rank in enumerate(taken):
            shares[rank] += sorted(of_rank)
    return [np.array(share, dtype=np.int64) for share in shares]


def answers_of(groups: Ints, group_size: int) -> Ints:
    """Return the indices of the answers to these prompts; the answers to one prompt are adjacent."""
    return (groups[:, None] * group_size + np.arange(group_size)).reshape(-1)


def tokens_by_group(rollout: RolloutRecord, group_size: int) -> Ints:
    """[P] Count the tokens of each prompt's answers, the prompt's included in each."""

    def lengths(rows: Sequence[npt.NDArray[np.int32]]) -> Ints:
        return np.array([len(row) for row in rows], dtype=np.int64)

    tokens_N = lengths(rollout.prompts) + lengths(rollout.answers)
    by_group: Ints = tokens_N.reshape(-1, group_size).sum(axis=1)
    return by_group
