"""Calling reward functions in processes of their own, so that none can stop, slow or kill the run.

A function that raises, returns no finite number, takes too long or takes its process with it costs its
sample, and nothing else: each call has an answer of its own, in order, whatever the number of workers.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import pickle
import shutil
import tempfile
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from raymill.rl.reward.task import GRACE_S, RewardError, Sample, Score, failed
from raymill.rl.reward.worker import Call, Setup
from raymill.rl.reward.worker_process import WorkerProcess

MEMORY_BYTES = 4 * 2**30
T = TypeVar("T")


class RewardPool:
    """Worker processes that score samples. They start with the first batch, and end with `close` or
    with this process, however that ends.

    Workers have this process's module path, working directory and environment; `names` are loaded
    before calls are timed; a call that doesn't end within `timeout_s` is killed GRACE_S later. One
    thread owns them all, since Linux's way to end a child with its parent is to end it with the thread
    that started it. Batches may come from several threads.

    Processes that a function starts itself end with a worker that is killed here. If this process is
    killed, only the workers (and code that is judged) are certain to end with it.
    """

    def __init__(
        self,
        *,
        workers: int = 1,
        timeout_s: float = 10.0,
        names: Sequence[str] = (),
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        if workers < 1 or timeout_s <= 0:
            raise ValueError(
                f"expected workers ≥ 1 and timeout_s > 0, got {workers} and {timeout_s}"
            )
        self.timeout_s = timeout_s
        self.restarts = 0  # workers that a call made necessary to replace
        self._scratch = Path(tempfile.mkdtemp(prefix="raymill-reward-"))
        setup = Setup(tuple(names), memory_bytes)
        self._workers = [WorkerProcess(setup, self._scratch) for _ in range(workers)]
        self._idle: asyncio.LifoQueue[WorkerProcess] = asyncio.LifoQueue()  # few calls, few starts
        for worker in self._workers:
            self._idle.put_nowait(worker)
        self._owner = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def score(self, calls: Sequence[tuple[str, Sample]]) -> list[Score]:
        """Call every named function with its sample; scores are in the order of `calls`.

        Raises:
            RewardError: workers don't start on this machine, or the pool isn't open in this process.
        """
        if self._loop.is_closed() or os.getpid() != self._owner:
            raise RewardError(
                "no pool: it was closed, or belongs to the process that this one forked from"
            )
        return self._wait(self._score(calls))

    def close(self) -> None:
        """End the workers. May be called twice."""
        if self._loop.is_closed() or os.getpid() != self._owner:
            return
        atexit.unregister(self.close)
        self._wait(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C in the caller: calls under way are given up
            raise

    async def _score(self, calls: Sequence[tuple[str, Sample]]) -> list[Score]:
        tasks = [asyncio.ensure_future(self._one(name, sample)) for name, sample in calls]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            await _cancel(*tasks)
            raise

    async def _one(self, name: str, sample: Sample) -> Score:
        worker = await self._idle.get()
        try:
            request = pickle.dumps(Call(name, sample, self.timeout_s))
        except Exception as error:  # noqa: BLE001  (values of `extra` may raise anything)
            self._idle.put_nowait(worker)
            return failed(f"not sendable: {type(error).__name__}: {error}")
        try:
            await worker.start()
            return await self._ask(worker, name, request)
        except BaseException:
            await worker.kill()  # a reply under way belongs to nobody
            raise
        finally:
            self._idle.put_nowait(worker)

    async def _ask(self, worker: WorkerProcess, name: str, request: bytes) -> Score:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(self.timeout_s + GRACE_S):
                return Score(**await worker.ask(request))
        except TimeoutError:
            error = f"timeout: {name} took longer than {self.timeout_s:g} s"
        except (EOFError, OSError, ValueError, TypeError) as fault:
            error = f"died: {name} ended its process ({await worker.ending() or fault})"
        self.restarts += 1
        seconds = time.monotonic() - begin
        await worker.kill()
        return failed(error, seconds)

    async def _stop(self) -> None:
        current = asyncio.current_task()
        await _cancel(*(task for task in asyncio.all_tasks() if task is not current))
        for worker in self._workers:
            await worker.kill()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
