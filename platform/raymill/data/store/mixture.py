"""Mixture of sources: which source gives global sample g, and how many it gave before.

A pure function of g, with an inverse. The weights are split by a Huffman tree: a node whose left
part has weight a of its own b sends floor(n*a/b + 1/2) of its first n samples to the left.

Every source is within two samples of its share, |count_i(g) − w_i g| < 2, for every g: let e be
a node's count minus its share of g. The root has e = 0, and a child e' = ratio * e ± d with
|d| ≤ 1/2, where ratio is the child's weight over the node's. At depth k, |e| ≤ 1/2 (1 + r_1 +
r_1 r_2 + …), where r_1 is the leaf's own ratio and r_2, r_3 … are those above it. In a Huffman
tree a grandchild has at most half of its grandparent's weight: when it was merged, with the
lighter of two, everything else was at least as heavy as it, so its uncle is too. So r_k r_{k+1} ≤
1/2, and the sum is less than (1 + 1)(1 + 1/2 + 1/4 + …) = 4.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from raymill.data.store.hashing import Ints
from raymill.errors import DataError

# Sum of the integer weights at most: products of two of them, doubled, fit in 63 bits.
LARGEST_SUM = 2**31


@dataclass(frozen=True)
class Change:
    """Weights of all sources from global sample `first` on."""

    first: int
    weights: tuple[float, ...]


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Return integers in the ratio of the weights' decimal notations.

    If their sum would exceed `LARGEST_SUM`, they are rounded to that resolution, and no source that
    has a weight loses it.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    unit = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * unit) for weight in exact]
    divisor = gcd(*whole)
    if divisor == 0:
        return whole
    total = sum(whole) // divisor
    if total <= LARGEST_SUM:
        return [weight // divisor for weight in whole]
    room = LARGEST_SUM - len(whole)
    return [max(1, weight * room // sum(whole)) if weight else 0 for weight in whole]


class _Tree:
    """Huffman tree over the sources with a weight; leaves are numbered as the sources."""

    def __init__(self, weights: Sequence[int]) -> None:
        sources = len(weights)
        self.sources = sources
        nodes = max(1, 2 * sources - 1)
        self.weight = np.zeros(nodes, dtype=np.int64)
        self.weight[:sources] = weights
        self.left, self.right = np.zeros((2, nodes), dtype=np.int64)
        self.parent = np.full(nodes, -1, dtype=np.int64)
        # Equal weights are merged in the order of their numbers, so the tree is unique.
        heap = [(weight, index) for index, weight in enumerate(weights) if weight]
        heapq.heapify(heap)
        # Inner nodes in the order in which they were made: children before their parents.
        self.inner: list[int] = []
        while len(heap) > 1:
            light, heavy = heapq.heappop(heap), heapq.heappop(heap)
            node = sources + len(self.inner)
            self.inner.append(node)
            self.left[node], self.right[node] = light[1], heavy[1]
            self.parent[[light[1], heavy[1]]] = node
            self.weight[node] = light[0] + heavy[0]
            heapq.heappush(heap, (light[0] + heavy[0], node))
        self.root = heap[0][1]

    def _sent_left(self, node: Ints | int, number: Ints) -> Ints:
        """Return how many of a node's first `number` samples go to the left."""
        a, b = self.weight[self.left[node]], self.weight[node]
        whole, rest = np.divmod(number, b)
        return np.asarray(whole * a + (2 * rest * a + b) // (2 * b))

    def counts(self, number: Ints) -> Ints:
        """Return [len(number), sources]: how many of the first `number` samples each source gave."""
        at = np.zeros((len(self.weight), len(number)), dtype=np.int64)
        at[self.root] = number
        for node in reversed(self.inner):
            left = self._sent_left(node, at[node])
            at[self.left[node]], at[self.right[node]] = left, at[node] - left
        return at[: self.sources].T

    def assign(self, number: Ints) -> tuple[Ints, Ints]:
        """Return each sample's source, and how many that source gave before it."""
        node, index = np.full(len(number), self.root), number.copy()
        active = np.arange(len(number)) if self.inner else np.empty(0, dtype=np.int64)
        while active.size:
            at, n = node[active], index[active]
            left = self._sent_left(at, n)
            goes = self._sent_left(at, n + 1) > left
            index[active] = np.where(goes, left, n - left)
            node[active] = np.where(goes, self.left[at], self.right[at])
            active = active[node[active] >= self.sources]
        return node, index

    def samples(self, source: Ints, position: Ints) -> Ints:
        """Return the sample that is number `position` of its source; the inverse of `assign`."""
        node, number = source.copy(), position.copy()
        active = np.flatnonzero(node != self.root)
        while active.size:
            at = node[active]
            parent = self.parent[at]
            a, b = self.weight[at], self.weight[parent]
            whole, rest = np.divmod(number[active], a)
            # Left: the first n with n*a/b + 1/2 ≥ rest + 1. Right: with n*a/b − 1/2 > rest.
            is_left = (self.left[parent] == at).astype(np.int64)
            number[active] = whole * b + ((2 * rest + 1) * b - is_left) // (2 * a)
            node[active] = parent
            active = active[parent != self.root]
        return number


@dataclass(frozen=True)
class _Phase:
    """Samples from `first` on, divided by one tree; `before`: what each source gave until then."""

    first: int
    weights: tuple[int, ...]
    tree: _Tree
    before: Ints


class Mixture:
    """Assignment of all global samples to sources, with weights that may change on the way.

    `limits` are the samples that a source can give at most (None: without end). A source that has
    given them has weight 0 from there on, and the others share by the ratio of their weights.
    Counts are within two samples of the shares in each phase, counted from its beginning.
    """

    def __init__(self, changes: Sequence[Change], limits: Sequence[int | None]) -> None:
        # Number of samples there are; None: without end.
        self.available: int | None = None
        self.phases: list[_Phase] = []
        first, before = 0, np.zeros(len(limits), dtype=np.int64)
        for change, after in zip(changes, [*changes[1:], None], strict=True):
            while after is None or first < after.first:
                live = [
                    0 if limit is not None and given >= limit else weight
                    for weight, limit, given in zip(change.weights, limits, before, strict=True)
                ]
                if not any(live):
                    self.available = first
                    return
                weights = whole_weights(live)
                phase = _Phase(first, tuple(weights), _Tree(weights), before)
                self.phases.append(phase)
                end = self._first_end(phase, limits)
                ends = [e for e in (end, None if after is None else after.first) if e is not None]
                if not ends:
                    return
                first = min(ends)
                before = before + phase.tree.counts(np.array([first - phase.first]))[0]

    @staticmethod
    def _first_end(phase: _Phase, limits: Sequence[int | None]) -> int | None:
        """Return the first sample after the one with which a source reaches its limit."""
        source = np.array(
            [i for i, limit in enumerate(limits) if limit is not None and phase.weights[i]],
            dtype=np.int64,
        )
        if not source.size:
            return None
        left = np.array([limits[i] for i in source], dtype=np.int64) - phase.before[source]
        return phase.first + int(phase.tree.samples(source, left - 1).min()) + 1

    @property
    def starts(self) -> Ints:
        """First samples of the phases."""
        return np.array([phase.first for phase in self.phases], dtype=np.int64)

    def phase_of(self, samples: Ints) -> Ints:
        """Return the number of the phase that each sample lies in."""
        return np.searchsorted(self.starts, samples, side="right") - 1

    def counts(self, samples: Ints) -> Ints:
        """Return [len(samples), sources]: how many samples each source gave before each sample."""
        counts = np.empty((len(samples), len(self.phases[0].before)), dtype=np.int64)
        for phase, chosen in self._by_phase(self.phase_of(samples)):
            counts[chosen] = phase.before + phase.tree.counts(samples[chosen] - phase.first)
        return counts

    def assign(self, samples: Ints) -> tuple[Ints, Ints]:
        """Return each sample's source, and how many samples that source gave before it.

        Raises:
            DataError: a sample lies beyond the last that the sources can give.
        """
        self.check(int(samples.max(initial=-1)) + 1)
        source, position = np.empty((2, len(samples)), dtype=np.int64)
        for phase, chosen in self._by_phase(self.phase_of(samples)):
            found, index = phase.tree.assign(samples[chosen] - phase.first)
            source[chosen], position[chosen] = found, index + phase.before[found]
        return source, position

    def samples(self, source: Ints, position: Ints) -> Ints:
        """Return the global samples at these positions of the sources; the inverse of `assign`."""
        befores = np.stack([phase.before for phase in self.phases])
        # The last phase before which a source had given no more than `position`.
        phases = (befores[:, source] <= position).sum(axis=0) - 1
        samples = np.empty(len(source), dtype=np.int64)
        for phase, chosen in self._by_phase(phases):
            index = position[chosen] - phase.before[source[chosen]]
            samples[chosen] = phase.first + phase.tree.samples(source[chosen], index)
        return samples

    def check(self, samples: int) -> None:
        """Refuse more samples than the sources can give.

        Raises:
            DataError: names the number of samples there are.
        """
        if self.available is not None and samples > self.available:
            raise DataError(
                f"the data has {self.available:,} samples until every source has reached its "
                f"max_epochs, and {samples:,} are needed"
            )

    def _by_phase(self, phases: Ints) -> list[tuple[_Phase, Ints]]:
        return [
            (self.phases[number], np.flatnonzero(phases == number))
            for number in np.unique(phases).tolist()
        ]
