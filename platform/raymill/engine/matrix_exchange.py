"""Whole matrices out of the parts that ranks have: each is put together on one rank, and goes back in parts.

In a step a rank sends and receives about twice what it has of the matrices (under ZeRO-0, where all have all,
it receives the matrices once), and computes its share of them, whatever the number of ranks. What grows with
that number are the messages of a round, one to each rank; and ranks beyond the number of matrices have nothing
to compute.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from raymill.engine.group import WorkerGroup


@dataclass(frozen=True)
class Partition:
    """Which elements of a flattened parameter each rank has: it begins `first` elements into a sequence that is
    cut into parts of `size`, of which rank r has the r-th. Or every rank has all elements."""

    numel: int
    first: int
    size: int
    replicated: bool = False

    def range_of(self, rank: int) -> tuple[int, int]:
        """(start, numel) of a rank's elements."""
        if self.replicated:
            return 0, self.numel
        start = min(max(0, rank * self.size - self.first), self.numel)
        stop = min(max(0, (rank + 1) * self.size - self.first), self.numel)
        return start, stop - start

    def ranks(self, world_size: int) -> range:
        """The ranks that have any."""
        if self.replicated:
            return range(world_size)
        return range(self.first // self.size, (self.first + self.numel - 1) // self.size + 1)

    def is_whole_on(self, rank: int) -> bool:
        return self.range_of(rank)[1] == self.numel


@dataclass(frozen=True)
class Matrix:
    """A matrix of which this rank has `numel` elements: those of the flattened `key` from `offset` on."""

    shape: tuple[int, int]
    partition: Partition
    key: torch.Tensor
    offset: int
    numel: int

    @property
    def cost(self) -> int:
        """Of orthogonalizing it, in multiplications, up to a constant."""
        return self.shape[0] * self.shape[1] * min(self.shape)

    def weight(self) -> torch.Tensor:
        """Live view of this rank's elements."""
        return self.key.detach().view(-1).narrow(0, self.offset, self.numel)

    def gradient(self) -> torch.Tensor:
        """Live view of their gradient."""
        assert self.key.grad is not None, "a matrix is exchanged when it has a gradient"
        return self.key.grad.view(-1).narrow(0, self.offset, self.numel)


Round = list[tuple[Matrix, int]]
"""Matrices, each with the rank that puts it together: its owner."""


def plan_rounds(matrices: Sequence[Matrix], world_size: int, bucket_elements: int) -> list[Round]:
    """The same on every rank. In a round a rank receives about `bucket_elements`, or an owner one matrix."""
    if any(matrix.partition.replicated for matrix in matrices):
        bucket_elements //= world_size  # since every rank receives what all put together
    of_owner: dict[int, list[Matrix]] = defaultdict(list)
    for matrix, owner in zip(matrices, assign_owners(matrices, world_size), strict=True):
        of_owner[owner].append(matrix)
    rounds: list[Round] = []
    for owner, own in sorted(of_owner.items()):
        number, elements = 0, 0
        for matrix in own:
            if elements and elements + matrix.partition.numel > bucket_elements:
                number, elements = number + 1, 0
            elements += matrix.partition.numel
            if number == len(rounds):
                rounds.append([])
            rounds[number].append((matrix, owner))
    return rounds


def assign_owners(matrices: Sequence[Matrix], world_size: int) -> list[int]:
    """For a matrix that all ranks have of, the one with the least to do; otherwise the one that has the most of
    it, and so has the least to fetch."""
    owners = [0] * len(matrices)
    # There are no more owners than matrices.
    loads = [(0, rank) for rank in range(min(world_size, len(matrices)))]
    for index in sorted(range(len(matrices)), key=lambda index: -matrices[index].cost):
        partition = matrices[index].partition
        ranks = partition.ranks(world_size)
        if len(ranks) == world_size:
            load, owners[index] = heapq.heappop(loads)
            heapq.heappush(loads, (load + matrices[index].cost, owners[index]))
        else:
            owners[index] = max(ranks, key=lambda rank: (partition.range_of(rank)[1], -rank))
    return owners


class MatrixExchange:
    """Applies a function to the whole matrices of which the ranks of a group have parts."""

    def __init__(
        self, matrices: Iterable[Matrix], group: WorkerGroup, bucket_elements: int
    ) -> None:
        self._group = group
        self._bucket_elements = bucket_elements
        self._matrices: dict[int, list[Matrix]] = {}
        for matrix in matrices:
            self._matrices.setdefault(id(matrix.key), []).append(matrix)
        self._rounds: dict[tuple[int, ...], list[Round]] = {}

    def apply(
        self,
        keys: Sequence[torch.Tensor],
        function: Callable[[torch.Tensor], torch.Tensor],
        dtype: torch.dtype,
    ) -> Iterator[tuple[Matrix, torch.Tensor]]:
        """This rank's elements of the function of each matrix whose gradient is in that of `keys`, flat.

        `dtype` is what the function returns. Collective: every rank passes its keys of the same matrices, and
        takes all that this yields.
        """
        for matrices in self._rounds_of(keys):
            results = [function(whole_NM) for whole_NM in self._put_together(matrices)]
            yield from self._give_back(matrices, results, dtype)

    def _rounds_of(self, keys: Sequence[torch.Tensor]) -> list[Round]:
        ids = tuple(map(id, keys))
        if ids not in self._rounds:
            matrices = [matrix for key in keys for matrix in self._matrices[id(key)]]
            self._rounds[ids] = plan_rounds(matrices, self._group.world_size, self._bucket_elements)
        return self._rounds[ids]

    def _put_together(self, matrices: Round) -> list[torch.Tensor]:
        """Those matrices of a round that this rank owns."""
        rank = self._group.rank
        scattered = [item for item in matrices if not item[0].partition.is_whole_on(item[1])]
        outgoing: dict[int, list[torch.Tensor]] = defaultdict(list)
        incoming: dict[int, list[int]] = defaultdict(list)
        for matrix, owner in scattered:
            if owner != rank and matrix.numel:
                outgoing[owner].append(matrix.gradient())
            elif owner == rank:
                for other in self._others(matrix):
                    incoming[other].append(matrix.partition.range_of(other)[1])
        parts = self._exchange(outgoing, incoming, torch.float32) if scattered else {}
        whole = []
        for matrix, owner in matrices:
            if owner != rank:
                continue
            own = matrix.gradient().to(self._group.device)
            if not matrix.partition.is_whole_on(rank):
                pieces = {other: next(parts[other]) for other in self._others(matrix)}
                pieces[rank] = own
                own = torch.cat([pieces[other] for other in sorted(pieces)])
            whole.append(own.view(matrix.shape))
        return whole

    def _give_back(
        self, matrices: Round, results: Sequence[torch.Tensor], dtype: torch.dtype
    ) -> Iterator[tuple[Matrix, torch.Tensor]]:
        """This rank's parts of the results of a round, of which `results` are those that it owns."""
        rank = self._group.rank
        outgoing: dict[int, list[torch.Tensor]] = defaultdict(list)
        incoming: dict[int, list[int]] = defaultdict(list)
        flat = iter([result.reshape(-1) for result in results])
        shared = False
        parts: list[tuple[Matrix, torch.Tensor]] = []
        for matrix, owner in matrices:
            shared |= len(matrix.partition.ranks(self._group.world_size)) > 1
            if owner == rank:
                result = next(flat)
                for other in self._others(matrix):
                    outgoing[other].append(result.narrow(0, *matrix.partition.range_of(other)))
                parts.append((matrix, result.narrow(0, *matrix.partition.range_of(rank))))
            elif matrix.numel:
                incoming[owner].append(matrix.numel)
        if shared:
            received = self._exchange(outgoing, incoming, dtype)
            parts += [
                (matrix, next(received[owner]))
                for matrix, owner in matrices
                if owner != rank and matrix.numel
            ]
        for matrix, part in parts:
            yield matrix, part.to(matrix.key.device)

    def _others(self, matrix: Matrix) -> Iterator[int]:
        """The other ranks that have any of it."""
        ranks = matrix.partition.ranks(self._group.world_size)
        return (rank for rank in ranks if rank != self._group.rank)

    def _exchange(
        self,
        outgoing: Mapping[int, Sequence[torch.Tensor]],
        incoming: Mapping[int, Sequence[int]],
        dtype: torch.dtype,
    ) -> dict[int, Iterator[torch.Tensor]]:
        """Send tensors to ranks, and receive as many as stated from ranks; all flat, in order."""
        group = self._group
        ranks = range(group.world_size)
        sent = [part.to(group.device) for rank in ranks for part in outgoing.get(rank, ())]
        sizes_out = [sum(map(torch.Tensor.numel, outgoing.get(rank, ()))) for rank in ranks]
        sizes_in = [sum(incoming.get(rank, ())) for rank in ranks]
        out = torch.cat(sent) if sent else torch.empty(0, dtype=dtype, device=group.device)
        received = torch.empty(sum(sizes_in), dtype=dtype, device=group.device)
        group.all_to_all(received, out, sizes_in, sizes_out)
        by_rank = torch.split(received, sizes_in)
        return {
            rank: iter(torch.split(by_rank[rank], list(sizes))) for rank, sizes in incoming.items()
        }
