"""Worker processes that call reward functions, so that none can stop, slow or kill the run.

A function that raises, returns no finite number, takes too long or kills its process only costs its sample:
each call has its own result, in order, whatever the number of workers.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from raymill.rl.reward.task import GRACE_S, RewardError, Sample, Score, failed_score
from raymill.rl.reward.worker import HEADER, Call, Setup

MEMORY_BYTES = 4 * 2**30
# Time for a worker to import the user's modules.
START_SECONDS = 120.0
START_ATTEMPTS = 3
_END_SECONDS = 5.0
_REPLY_BYTES = 64 * 2**10
T = TypeVar("T")


class WorkerProcess:
    """The pool's end of a worker, which is started when it is needed, and again after it was killed or died."""

    def __init__(self, setup: Setup, scratch: Path) -> None:
        self._setup = setup
        self._scratch = scratch
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start the worker and let it load its functions, unless it is running.

        Raises:
            RewardError: several attempts failed.
        """
        if self._process is not None and self._process.returncode is None:
            return
        why: object = None
        for _ in range(START_ATTEMPTS):
            await self.kill()
            try:
                async with asyncio.timeout(START_SECONDS):
                    self._process = await self._spawn()
                    await self.request(pickle.dumps(self._setup))
                return
            except TimeoutError:
                why = f"importing {', '.join(self._setup.names)} takes over {START_SECONDS:.0f} s"
                break
            except (EOFError, OSError, ValueError) as error:
                why = await self.ending() or error
        await self.kill()
        raise RewardError(
            f"no worker: a process for reward functions doesn't start ({why}); what it wrote to "
            "standard error is in this process's log"
        )

    async def request(self, request: bytes) -> dict[str, Any]:
        """Send a frame and return the reply.

        Raises:
            EOFError, OSError, ValueError: the process has ended, or its reply is malformed.
        """
        process = self._process
        assert process is not None, "the worker was started"
        assert process.stdin is not None and process.stdout is not None, "its streams are pipes"
        process.stdin.write(HEADER.pack(len(request)) + request)
        await process.stdin.drain()
        (size,) = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
        if size > _REPLY_BYTES:
            raise ValueError(f"a reply of {size} bytes")
        reply = json.loads(await process.stdout.readexactly(size))
        if not isinstance(reply, dict):
            raise ValueError(f"a reply that is {type(reply).__name__}")
        return reply

    async def ending(self) -> str | None:
        """Return how the process ended, if it ends within a moment."""
        if self._process is None:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                status = await self._process.wait()
                return f"signal {-status}" if status < 0 else f"exit status {status}"
        return None

    async def kill(self) -> None:
        """Kill the process and all others in its process group."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdin is not None:
            process.stdin.close()
        # The kernel may take longer to end the process, which can do no more harm.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()

    async def _spawn(self) -> asyncio.subprocess.Process:
        # An empty entry means the working directory.
        path = [os.path.abspath(entry) for entry in sys.path]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path),
            # Makes the order of sets the same in every worker.
            "PYTHONHASHSEED": "0",
            "TMPDIR": str(self._scratch),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "raymill.rl.reward.worker", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            # Keeps Ctrl-C from the worker: the run decides when to end it.
            start_new_session=True,
        )


class RewardPool:
    """Worker processes that score samples.

    They start with the first batch, and end with `close` or with this process, however it ends. They have
    this process's module path, working directory and environment. The functions `names` are loaded before
    calls are timed; a call that doesn't end within `timeout_s` is killed GRACE_S later. Batches may come
    from several threads.

    Processes started by a function end with its worker when that is killed here. If this process is killed,
    only the workers (and code that is being judged) are certain to end with it.
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
        # Number of workers replaced because of a call.
        self.restarts = 0
        self._scratch = Path(tempfile.mkdtemp(prefix="raymill-reward-"))
        setup = Setup(tuple(names), memory_bytes)
        self._workers = [WorkerProcess(setup, self._scratch) for _ in range(workers)]
        # Last in, first out, so that a few calls start only a few workers.
        self._idle: asyncio.LifoQueue[WorkerProcess] = asyncio.LifoQueue()
        for worker in self._workers:
            self._idle.put_nowait(worker)
        self._owner = os.getpid()
        # One thread starts all workers, because Linux ends a child with the thread that started it (PDEATHSIG).
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rewards", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def score(self, calls: Sequence[tuple[str, Sample]]) -> list[Score]:
        """Call each named function with its sample; return scores in the order of `calls`.

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
            # Ctrl-C in the caller cancels the running calls.
            future.cancel()
            raise

    async def _score(self, calls: Sequence[tuple[str, Sample]]) -> list[Score]:
        tasks = [asyncio.ensure_future(self._call(name, sample)) for name, sample in calls]
        try:
            return list(await asyncio.gather(*tasks))
        except BaseException:
            await _cancel(*tasks)
            raise

    async def _call(self, name: str, sample: Sample) -> Score:
        worker = await self._idle.get()
        try:
            request = pickle.dumps(Call(name, sample, self.timeout_s))
        except Exception as error:  # noqa: BLE001  (values of `extra` may raise anything)
            self._idle.put_nowait(worker)
            return failed_score(f"not sendable: {type(error).__name__}: {error}")
        try:
            await worker.start()
            return await self._request(worker, name, request)
        except BaseException:
            # Its next reply would be taken for that of the next call.
            await worker.kill()
            raise
        finally:
            self._idle.put_nowait(worker)

    async def _request(self, worker: WorkerProcess, name: str, request: bytes) -> Score:
        started = time.monotonic()
        try:
            async with asyncio.timeout(self.timeout_s + GRACE_S):
                return Score(**await worker.request(request))
        except TimeoutError:
            error = f"timeout: {name} took longer than {self.timeout_s:g} s"
        except (EOFError, OSError, ValueError, TypeError) as fault:
            error = f"died: {name} ended its process ({await worker.ending() or fault})"
        self.restarts += 1
        seconds = time.monotonic() - started
        await worker.kill()
        return failed_score(error, seconds)

    async def _stop(self) -> None:
        current = asyncio.current_task()
        await _cancel(*(task for task in asyncio.all_tasks() if task is not current))
        for worker in self._workers:
            await worker.kill()


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
