"""Exchange of matrices: parts on several ranks give the same result as whole matrices on one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from raymill.checkpoint.partition import Partition
from raymill.engine.matrix_exchange import Matrix, MatrixExchange

SHAPES = [(8, 8), (4, 6), (16, 2), (1, 5), (12, 12), (3, 7), (8, 8), (2, 2)]


class Ranks:
    """Ranks of a group as threads of this process; counts the elements that each sends to the others."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.barrier = threading.Barrier(world_size, timeout=30)
        self.posted: list[Sequence[torch.Tensor]] = [[] for _ in range(world_size)]
        self.sent = [0] * world_size
        self.calls = 0

    def run(self, work: Callable[[Any], Any]) -> list[Any]:
        with ThreadPoolExecutor(self.world_size) as pool:
            return list(pool.map(lambda rank: work(Rank(self, rank)), range(self.world_size)))


class Rank:
    device = torch.device("cpu")

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self._ranks, self.rank, self.world_size = ranks, rank, ranks.world_size

    def all_to_all(
        self,
        received: torch.Tensor,
        sent: torch.Tensor,
        sizes_in: Sequence[int],
        sizes_out: Sequence[int],
    ) -> None:
        ranks = self._ranks
        assert sizes_out[self.rank] == 0, "nobody sends to itself"
        ranks.posted[self.rank] = sent.split(list(sizes_out))
        ranks.sent[self.rank] += sent.numel()
        ranks.calls += self.rank == 0
        ranks.barrier.wait()
        parts = [ranks.posted[rank][self.rank] for rank in range(self.world_size)]
        assert [part.numel() for part in parts] == list(sizes_in)
        assert all(part.dtype == received.dtype for part in parts)
        received.copy_(torch.cat(parts))
        ranks.barrier.wait()


def cut(stage: int, rank: int, world_size: int, gradients: list[torch.Tensor]) -> list[Matrix]:
    """Return a rank's parts of the matrices under a ZeRO stage, in keys of its own, with gradients."""
    whole = sum(gradient.numel() for gradient in gradients)
    size = -(-whole // world_size)
    flat = torch.zeros(size)
    flat.grad = torch.zeros(size)
    matrices, first = [], 0
    for gradient in gradients:
        numel = gradient.numel()
        if stage == 0:
            partition = Partition(numel, 0, numel, replicated=True)
        elif stage == 3:
            partition = Partition(numel, 0, -(-numel // world_size))
        else:
            partition = Partition(numel, first, size)
        start, share = partition.range_of(rank)
        key, offset = flat, max(0, first - rank * size) if share else 0
        if stage in (0, 3):
            key, offset = torch.zeros(share), 0
            key.grad = torch.zeros(share)
        matrix = Matrix((gradient.shape[0], gradient.shape[1]), partition, key, offset, share)
        matrix.gradient().copy_(gradient.flatten()[start : start + share])
        matrices.append(matrix)
        first += numel
    return matrices


@pytest.mark.parametrize("bucket_elements", [1, 100])
@pytest.mark.parametrize("world_size", [1, 2, 3, 11])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_parts_are_those_of_the_whole(stage: int, world_size: int, bucket_elements: int) -> None:
    dtype = torch.bfloat16  # of what comes back; what is sent is fp32
    torch.manual_seed(5)
    gradients = [torch.randn(shape) for shape in SHAPES]
    computed: list[int] = []

    def function(matrix_NM: torch.Tensor) -> torch.Tensor:
        (index,) = [i for i, g in enumerate(gradients) if torch.equal(g, matrix_NM)]
        computed.append(index)
        return (matrix_NM.T.contiguous().T * (index + 2)).to(dtype)  # of another layout in memory

    def work(group: Any) -> None:
        matrices = cut(stage, group.rank, world_size, gradients)
        exchange = MatrixExchange(matrices, group, bucket_elements)
        keys = list({id(matrix.key): matrix.key for matrix in matrices}.values())
        for _ in range(2):
            found = list(exchange.apply(keys, function, dtype))
            assert len(found) == len({id(matrix) for matrix, _ in found})
            assert sum(part.numel() for _, part in found) == sum(m.numel for m in matrices)
            for matrix, part in found:
                index = next(i for i, m in enumerate(matrices) if m is matrix)
                start, share = matrix.partition.range_of(group.rank)
                whole = (gradients[index] * (index + 2)).to(dtype).flatten()
                assert torch.equal(part, whole[start : start + share])

    ranks = Ranks(world_size)
    ranks.run(work)
    assert sorted(computed) == sorted([*range(len(SHAPES))] * 2), "each once a step, on one rank"
    if world_size == 1:
        assert ranks.calls == 0, "nobody to talk to"
    if stage:
        whole = sum(gradient.numel() for gradient in gradients)
        largest = max(gradient.numel() for gradient in gradients)
        assert max(ranks.sent) <= 2 * 2 * (-(-whole // world_size) + 2 * largest + len(SHAPES))
