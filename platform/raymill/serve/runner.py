"""Thread that drives an engine, and streams of its tokens for the event loop.

The engine's thread takes commands between two steps and hands over what a step drew in one call to the event
loop. A stream's reader is woken at once for its first and its last token; all others are handed out together
every `write_every_s`, so that a reader gets everything that was drawn since in one piece.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from raymill.errors import RaymillError
from raymill.generate.engine.request import (
    DecodingEngine,
    DrawnToken,
    EngineCounts,
    Finish,
    Progress,
    SamplingParameters,
    TokenLogProb,
)

# A reader that is this many tokens behind doesn't read; its answer is ended.
LARGEST_BACKLOG = 4096


class QueueFullError(RaymillError):
    """All slots are taken, and so are all places in the queue. `retry_after_s`: when to try again."""

    def __init__(self, waiting: int, retry_after_s: float) -> None:
        super().__init__(f"{waiting} answers are waiting already; try again later")
        self.retry_after_s = retry_after_s


class EngineFailedError(RaymillError):
    """The engine failed, so no request can be answered any more."""


class StreamEndedError(RaymillError):
    """The server ended an answer before it was complete."""


@dataclass
class Drawn:
    """Part of an answer: what was drawn since the last part. `prompt` and `reused`: see `Progress`."""

    tokens: list[DrawnToken]
    finish: Finish | None = None
    prompt: tuple[TokenLogProb, ...] | None = None
    reused: int | None = None


class TokenStream:
    """Tokens of one answer as they are drawn; `close` it, which frees its slot if the answer isn't complete."""

    def __init__(self, runner: EngineRunner) -> None:
        self._runner = runner
        self._news = Drawn([])
        self._ready = asyncio.Event()
        self._error: Exception | None = None
        # Set by the engine's thread.
        self.key: int | None = None
        # Times of the event loop's clock.
        self.submitted_s = asyncio.get_running_loop().time()
        self.first_s: float | None = None
        self.last_s: float | None = None
        self.count = 0

    async def read(self) -> Drawn:
        """Wait for tokens; return all that were drawn since the last call.

        Raises:
            EngineFailedError, StreamEndedError: the answer won't be completed.
        """
        await self._ready.wait()
        self._ready.clear()
        if self._error is not None:
            raise self._error
        news, self._news = self._news, Drawn([])
        return news

    def close(self) -> None:
        """End the answer; nothing happens if it is complete."""
        self._runner._end(self)

    def _add(self, progress: Progress, now_s: float) -> bool:
        """Add what a step did; return whether the reader must know at once: of a first or a last token."""
        news, first = self._news, self.first_s is None and bool(progress.tokens)
        news.tokens += progress.tokens
        news.prompt = news.prompt or progress.prompt
        news.reused = progress.reused if progress.reused is not None else news.reused
        news.finish = progress.finish
        self.count += len(progress.tokens)
        if progress.tokens:
            self.last_s = now_s
        if first:
            self.first_s = now_s
        return first or progress.finish is not None

    @property
    def backlog(self) -> int:
        """Tokens that were drawn and not read yet."""
        return len(self._news.tokens)

    def _wake(self) -> None:
        self._ready.set()

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._ready.set()


class EngineRunner:
    """Engine with a thread of its own, used from one event loop. `close` ends the thread.

    `waiting`: answers that may wait for a slot.
    """

    def __init__(self, engine: DecodingEngine, *, waiting: int, write_every_s: float) -> None:
        self._engine, self._waiting, self._write_every_s = engine, waiting, write_every_s
        self.positions, self.adapters = engine.positions, tuple(engine.adapters)
        # Snapshot of the engine's counts after its last step; replaced as a whole, never changed.
        self.counts: EngineCounts = engine.counts()
        self.failure: EngineFailedError | None = None
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        # By key, in the engine's thread; and all open ones, in the event loop.
        self._by_key: dict[int, TokenStream] = {}
        self._open: set[TokenStream] = set()
        self._withheld: set[TokenStream] = set()
        self._unaccepted: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._written_s = 0.0
        self._answer_s = 1.0
        self._thread = threading.Thread(target=self._drive, name="raymill-engine", daemon=True)
        self._thread.start()

    @property
    def capacity(self) -> int:
        """Answers that may be drawn or wait at the same time."""
        return self.counts.slots + self._waiting

    @property
    def open_streams(self) -> int:
        """Answers that aren't complete."""
        return len(self._open)

    async def submit(
        self, requests: Sequence[tuple[Sequence[int], SamplingParameters]]
    ) -> list[TokenStream]:
        """Queue answers, all or none; return a stream for each.

        Raises:
            RequestError: the engine refuses one of them.
            QueueFullError: there is no room for all of them.
            EngineFailedError: the engine has failed.
        """
        if self.failure is not None:
            raise self.failure
        if len(self._open) + len(requests) > self.capacity:
            waiting = max(0, len(self._open) - self.counts.slots)
            rounds = len(self._open) / max(1, self.counts.slots)
            raise QueueFullError(waiting, min(60.0, self._answer_s * rounds))
        self._loop = asyncio.get_running_loop()
        streams = [TokenStream(self) for _ in requests]
        accepted: asyncio.Future[None] = self._loop.create_future()
        self._open.update(streams)
        self._commands.put(partial(self._submit, streams, requests, accepted))
        self._unaccepted.add(accepted)
        try:
            await accepted
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        finally:
            self._unaccepted.discard(accepted)
        return streams

    def end_all(self, error: Exception) -> None:
        """End all answers with an error."""
        for stream in list(self._open):
            self._end(stream)
            stream._fail(error)
        for accepted in self._unaccepted:
            _refuse(accepted, error)

    def close(self) -> None:
        """End the thread after the step that it is in; answers that aren't complete end with an error."""
        self._commands.put(None)
        self._thread.join()
        self.end_all(StreamEndedError("the server is shutting down"))

    # In the event loop.

    def _end(self, stream: TokenStream) -> None:
        if stream in self._open:
            self._forget(stream)
            self._commands.put(partial(self._cancel, stream))

    def _forget(self, stream: TokenStream) -> None:
        self._open.discard(stream)
        self._withheld.discard(stream)

    def _deliver(self, news: Sequence[tuple[TokenStream, Progress]]) -> None:
        assert self._loop is not None, "a stream was opened in an event loop"
        now_s = self._loop.time()
        for stream, progress in news:
            if stream not in self._open:
                continue
            if stream._add(progress, now_s):
                stream._wake()
            elif stream.backlog > LARGEST_BACKLOG:
                self._end(stream)
                stream._fail(StreamEndedError("the client reads more slowly than the model writes"))
            elif stream.backlog:
                self._withheld.add(stream)
            if progress.finish is not None:
                self._forget(stream)
                self._answer_s += 0.1 * (now_s - stream.submitted_s - self._answer_s)
        if self._withheld and self._timer is None:
            wait_s = self._written_s + self._write_every_s - now_s
            if wait_s <= 0:
                self._wake_all()
            else:
                self._timer = self._loop.call_later(wait_s, self._wake_all)

    def _wake_all(self) -> None:
        assert self._loop is not None, "only a delivery calls this"
        self._timer, self._written_s = None, self._loop.time()
        for stream in self._withheld:
            stream._wake()
        self._withheld.clear()

    # In the engine's thread.

    def _drive(self) -> None:
        try:
            while self._take_commands():
                if self._engine.busy:
                    self._step()
        # Whatever fails, its requests must end; the event loop raises the error there.
        except Exception as error:  # noqa: BLE001
            failure = EngineFailedError(f"the engine failed: {type(error).__name__}: {error}")
            failure.__cause__ = error
            self.failure = failure
            # Submissions that the thread doesn't see any more are refused by the event loop, too.
            self._call_loop(self.end_all, failure)

    def _take_commands(self) -> bool:
        """Run all commands, and wait for one if there is nothing else to do; return False at the end."""
        wait = not self._engine.busy
        while True:
            try:
                command = self._commands.get(wait)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _step(self) -> None:
        news = []
        for progress in self._engine.step():
            stream = self._by_key.get(progress.key)
            if stream is not None:
                news.append((stream, progress))
                if progress.finish is not None:
                    del self._by_key[progress.key]
        self.counts = self._engine.counts()
        if news:
            self._call_loop(self._deliver, news)

    def _submit(
        self,
        streams: Sequence[TokenStream],
        requests: Sequence[tuple[Sequence[int], SamplingParameters]],
        accepted: asyncio.Future[None],
    ) -> None:
        try:
            for stream, (prompt, parameters) in zip(streams, requests, strict=True):
                stream.key = self._engine.submit(prompt, parameters)
                self._by_key[stream.key] = stream
        except RaymillError as error:
            self._call_loop(_refuse, accepted, error)
        else:
            self._call_loop(_accept, accepted)
        self.counts = self._engine.counts()

    def _cancel(self, stream: TokenStream) -> None:
        if stream.key is not None and self._by_key.pop(stream.key, None) is not None:
            self._engine.cancel(stream.key)
            self.counts = self._engine.counts()

    def _call_loop(self, work: Callable[..., None], *arguments: object) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(work, *arguments)
        except RuntimeError:
            # The event loop was closed, and with it everybody who reads.
            self._loop = None


def _accept(accepted: asyncio.Future[None]) -> None:
    if not accepted.done():
        accepted.set_result(None)


def _refuse(accepted: asyncio.Future[None], error: Exception) -> None:
    if not accepted.done():
        accepted.set_exception(error)
