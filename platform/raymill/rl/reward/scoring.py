"""All functions of a combination over a batch: some in worker processes, some by services."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from raymill.rl.reward.http import Endpoint
from raymill.rl.reward.names import is_address
from raymill.rl.reward.pool import RewardPool
from raymill.rl.reward.task import Sample, Score


class Scorer:
    """What calls the functions named in a configuration. `timeout_s` is for one call."""

    def __init__(self, names: Sequence[str], *, workers: int = 1, timeout_s: float = 10.0) -> None:
        self._functions = [name for name in names if not is_address(name)]
        self._endpoints = [
            Endpoint(name, timeout_s=timeout_s) for name in names if is_address(name)
        ]
        self._pool = RewardPool(workers=workers, timeout_s=timeout_s, names=self._functions)

    @property
    def restarts(self) -> int:
        """Worker processes that had to be replaced."""
        return self._pool.restarts

    def score(self, samples: Sequence[Sample]) -> dict[str, list[Score]]:
        """Scores by name, each in the order of `samples`. Services answer while functions run.

        Raises:
            RewardError: processes for functions don't start on this machine.
        """
        calls = [(name, sample) for name in self._functions for sample in samples]
        with ThreadPoolExecutor(max_workers=max(1, len(self._endpoints))) as threads:
            asked = [threads.submit(endpoint.score, samples) for endpoint in self._endpoints]
            scores = self._pool.score(calls)
            found = {
                name: scores[place * len(samples) : (place + 1) * len(samples)]
                for place, name in enumerate(self._functions)
            }
            for endpoint, future in zip(self._endpoints, asked, strict=True):
                found[endpoint.address] = future.result()
        return found

    def close(self) -> None:
        """End the worker processes. May be called twice."""
        self._pool.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
