"""The pool's end of a worker: starting it, asking it one thing at a time, and killing it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import signal
import sys
from pathlib import Path
from typing import Any

from raymill.rl.reward.task import RewardError
from raymill.rl.reward.worker import HEADER, Setup

START_SECONDS = 120.0  # in which a worker imports the user's modules
START_ATTEMPTS = 3
_END_SECONDS = 5.0
_REPLY_BYTES = 64 * 2**10


class WorkerProcess:
    """A worker that is started when it is needed, and again after it was killed or died."""

    def __init__(self, setup: Setup, scratch: Path) -> None:
        self._setup = setup
        self._scratch = scratch
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Have a worker that has loaded its functions.

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
                    await self.ask(pickle.dumps(self._setup))
                return
            except TimeoutError:
                why = f"importing {', '.join(self._setup.names)} takes over {START_SECONDS:.0f} s"
                break
            except (EOFError, OSError, ValueError) as error:
                why = await self.ending() or error
        await self.kill()
        raise RewardError(
            f"no worker: a process for reward functions doesn't start ({why}); what it wrote to "
            "standard error stands in this process's log"
        )

    async def ask(self, request: bytes) -> dict[str, Any]:
        """Send a frame and return the reply.

        Raises:
            EOFError, OSError, ValueError: the process is gone, or what it sent isn't a reply.
        """
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
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
        """How the process ended, if it does within a moment."""
        if self._process is None:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                status = await self._process.wait()
                return f"signal {-status}" if status < 0 else f"exit status {status}"
        return None

    async def kill(self) -> None:
        """End the process and what it started in its process group."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(TimeoutError):  # the kernel may be busy with it; it can't harm
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()

    async def _spawn(self) -> asyncio.subprocess.Process:
        path = [os.path.abspath(entry) for entry in sys.path]  # also an empty one
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONHASHSEED": "0",  # the order of sets is the same in every worker
            "TMPDIR": str(self._scratch),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "raymill.rl.reward.worker", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run, which decides
        )
