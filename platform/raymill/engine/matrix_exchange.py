"""Exchange of matrices between ranks: each matrix is assembled on one rank, and its result goes back in parts.

Per step a rank sends and receives about twice its part of the matrices (under ZeRO-0, where every rank has all
of them, it receives the matrices once), and computes its share of them, whatever the number of ranks. Only the
messages per round grow with that number, one per rank; and ranks beyond the number of matrices have nothing to
compute.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from raymill.checkpoint.partition import Partition
from raymill.engine.group import WorkerGroup


@dataclass(frozen=True)
class Matrix:
    """Matrix of which this rank has `numel` elements: those of the flattened `key` from `offset` on."""

    shape: tuple[int, int]
    partition: Partition
    key: torch.Tensor
    offset: int
    numel: int

    @property
    def cost(self) -> int:
        """Multiplications to orthogonalize it, up to a constant."""
        return self.shape[0] * self.shape[1] * min(self.shape)

    def weight(self) -> torch.Tensor:
        """Return a live view of this rank's elements."""
        return self.key.detach().view(-1).narrow(0, self.offset, self.numel)

    def gradient(self) -> torch.Tensor:
        """Return a live view of the gradient of this rank's elements."""
        assert self.key.grad is not None, "a matrix is exchanged when it has a gradient"
        return self.key.grad.view(-1).narrow(0, self.offset, self.numel)


Round = list[tuple[Matrix, int]]
"""Matrices, each with its owner: the rank that assembles it."""


def plan_rounds(matrices: Sequence[Matrix], world_size: int, bucket_elements: int) -> list[Round]:
    """Plan the rounds of an exchange, the same on every rank.

    Per round an owner receives about `bucket_elements`, or one matrix if that is larger.
    """
    if any(matrix.partition.replicated for matrix in matrices):
        # Every rank then receives the results of all owners.
        bucket_elements //= world_size
    of_owner: dict[int, list[Matrix]] = defaultdict(list)
    for matrix, owner in zip(matrices, assign_owners(matrices, world_size), strict=True):
        of_owner[owner].append(matrix)
    rounds: list[Round] = []
    for owner, owned in sorted(of_owner.items()):
        number, elements = 0, 0
        for matrix in owned:
            if elements and elements + matrix.partition.numel > bucket_elements:
                number, elements = number + 1, 0
            elements += matrix.partition.numel
            if number == len(rounds):
                rounds.append([])
            rounds[number].append((matrix, owner))
    return rounds


def assign_owners(matrices: Sequence[Matrix], world_size: int) -> list[int]:
    """Return the owner of each matrix.

    For a matrix that all ranks have a part of, it is the rank with the least work so far, largest matrices
    first; otherwise the rank with the largest part, which has the least to receive.
    """
    owners = [0] * len(matrices)
    loads = [(0, rank) for rank in range(min(world_size, len(matrices)))]
    # Largest first, which balances the loads better.
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
        """Apply the function to the gradient of each matrix in `keys`; yield this rank's elements of it, flat.

        `dtype` is the type of the function's result. Collective: every rank passes its keys of the same
        matrices, and exhausts the iterator.
        """
        for matrices in self._rounds_of(keys):
            results = [function(matrix_NM) for matrix_NM in self._assemble(matrices)]
            yield from self._distribute(matrices, results, dtype)

    def _rounds_of(self, keys: Sequence[torch.Tensor]) -> list[Round]:
        # A plan depends on the matrices that have gradients, which are nearly always the same.
        ids = tuple(map(id, keys))
        if ids not in self._rounds:
            matrices = [matrix for key in keys for matrix in self._matrices[id(key)]]
            self._rounds[ids] = plan_rounds(matrices, self._group.world_size, self._bucket_elements)
        return self._rounds[ids]

    def _assemble(self, matrices: Round) -> list[torch.Tensor]:
        """Return the gradients of the matrices of a round that this rank owns."""
        rank = self._group.rank
        # Matrices that lie whole on their owner need no messages.
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
        assembled = []
        for matrix, owner in matrices:
            if owner != rank:
                continue
            elements = matrix.gradient().to(self._group.device)
            # Parts are concatenated in the order of ranks, which is that of the elements.
            if not matrix.partition.is_whole_on(rank):
                pieces = {other: next(parts[other]) for other in self._others(matrix)}
                pieces[rank] = elements
                elements = torch.cat([pieces[other] for other in sorted(pieces)])
            assembled.append(elements.view(matrix.shape))
        return assembled

    def _distribute(
        self, matrices: Round, results: Sequence[torch.Tensor], dtype: torch.dtype
    ) -> Iterator[tuple[Matrix, torch.Tensor]]:
        """Yield this rank's parts of the results of a round; `results` are those of the matrices it owns."""
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
        """Return the other ranks that have a part of the matrix."""
        ranks = matrix.partition.ranks(self._group.world_size)
        return (rank for rank in ranks if rank != self._group.rank)

    def _exchange(
        self,
        outgoing: Mapping[int, Sequence[torch.Tensor]],
        incoming: Mapping[int, Sequence[int]],
        dtype: torch.dtype,
    ) -> dict[int, Iterator[torch.Tensor]]:
        """Send tensors to each rank, and receive tensors of the given sizes from each; all flat, in order."""
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
