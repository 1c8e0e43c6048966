"""Thread of an engine: writes together, cancellation, a full queue, slow readers, and an engine that fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from raymill.generate.engine.request import RequestError, SamplingParameters
from raymill.serve import runner as runner_module
from raymill.serve.runner import (
    EngineFailedError,
    EngineRunner,
    QueueFullError,
    StreamEndedError,
    TokenStream,
)
from serve.scripted_engine import ScriptedEngine
from serve.service import wait_until

Work = Callable[[EngineRunner, ScriptedEngine], Awaitable[None]]


def forever(_prompt: Any, _parameters: Any) -> list[int]:
    return list(range(10_000))


def run(
    work: Work, engine: ScriptedEngine, *, waiting: int = 4, write_every_s: float = 0.0
) -> None:
    runner = EngineRunner(engine, waiting=waiting, write_every_s=write_every_s)
    try:
        asyncio.run(asyncio.wait_for(work(runner, engine), 20))
    finally:
        engine.gate.set()
        runner.close()


def wanted(count: int, tokens: int = 10_000) -> list[tuple[list[int], SamplingParameters]]:
    return [([1, 2], SamplingParameters(max_new_tokens=tokens))] * count


async def all_tokens(stream: TokenStream) -> list[int]:
    ids: list[int] = []
    while True:
        drawn = await stream.read()
        ids += [token.id for token in drawn.tokens]
        if drawn.finish is not None:
            return ids


def test_streams_get_every_token_in_order() -> None:
    async def work(runner: EngineRunner, engine: ScriptedEngine) -> None:
        streams = await runner.submit(wanted(6, 40))
        assert await asyncio.gather(*map(all_tokens, streams)) == [list(range(40))] * 6
        assert runner.open_streams == 0 and not engine.busy

    run(work, ScriptedEngine(forever), write_every_s=0.001)


def test_the_first_token_comes_alone_and_the_others_together() -> None:
    async def work(runner: EngineRunner, _engine: ScriptedEngine) -> None:
        [stream] = await runner.submit(wanted(1, 60))
        parts = [await stream.read()]
        while parts[-1].finish is None:
            parts.append(await stream.read())
        assert len(parts[0].tokens) == 1 and parts[0].reused == 0
        # Sixty steps of a millisecond are fewer than six intervals.
        assert sum(len(part.tokens) for part in parts) == 60 and len(parts) < 8

    run(work, ScriptedEngine(forever, step_s=0.001), write_every_s=0.05)


def test_a_slow_engine_is_not_waited_for() -> None:
    """Tokens that come more slowly than they may be written are handed out at once."""

    async def work(runner: EngineRunner, _engine: ScriptedEngine) -> None:
        [stream] = await runner.submit(wanted(1, 5))
        for _ in range(5):
            assert len((await stream.read()).tokens) == 1

    run(work, ScriptedEngine(forever, step_s=0.03), write_every_s=0.01)


def test_a_closed_stream_frees_its_slot() -> None:
    async def work(runner: EngineRunner, engine: ScriptedEngine) -> None:
        streams = await runner.submit(wanted(2))
        await streams[0].read()
        streams[0].close()
        streams[0].close()
        await asyncio.to_thread(wait_until, lambda: runner.counts.running == 1, 1.0)
        assert runner.open_streams == 1
        # The other continues.
        assert (await streams[1].read()).tokens

    run(work, ScriptedEngine(forever, step_s=0.001))


def test_a_reader_that_is_canceled_while_it_waits_for_acceptance_leaves_nothing() -> None:
    async def work(runner: EngineRunner, engine: ScriptedEngine) -> None:
        await runner.submit(wanted(1))
        engine.gate.clear()
        await asyncio.sleep(0.02)
        task = asyncio.ensure_future(runner.submit(wanted(3)))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert runner.open_streams == 1
        engine.gate.set()
        await asyncio.to_thread(wait_until, lambda: len(engine.submitted) == 4)
        await asyncio.to_thread(wait_until, lambda: runner.counts.running == 1)

    run(work, ScriptedEngine(forever, step_s=0.001))


def test_a_full_queue_refuses_all_of_a_request() -> None:
    async def work(runner: EngineRunner, _engine: ScriptedEngine) -> None:
        assert runner.capacity == 6
        await runner.submit(wanted(5))
        with pytest.raises(QueueFullError, match="1 answers are waiting") as refusal:
            await runner.submit(wanted(2))
        assert refusal.value.retry_after_s > 0 and runner.open_streams == 5
        await runner.submit(wanted(1))

    run(work, ScriptedEngine(forever, step_s=0.001), waiting=2)


def test_a_refused_parameter_refuses_all_of_a_request() -> None:
    async def work(runner: EngineRunner, engine: ScriptedEngine) -> None:
        bad = ([1], SamplingParameters(max_new_tokens=4, min_p=0.5))
        with pytest.raises(RequestError, match="no min_p") as refusal:
            await runner.submit([*wanted(2), bad])
        assert refusal.value.parameter == "min_p" and runner.open_streams == 0
        await asyncio.to_thread(wait_until, lambda: not engine.busy)

    run(work, ScriptedEngine(forever, step_s=0.001))


def test_a_reader_that_does_not_read_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "LARGEST_BACKLOG", 50)

    async def work(runner: EngineRunner, engine: ScriptedEngine) -> None:
        slow, fast = await runner.submit(wanted(2))
        reading = asyncio.ensure_future(all_tokens(fast))
        await asyncio.to_thread(wait_until, lambda: runner.counts.running == 1)
        with pytest.raises(StreamEndedError, match="reads more slowly"):
            await slow.read()
        assert not reading.done()
        reading.cancel()

    run(work, ScriptedEngine(forever, step_s=0.001))


def test_an_engine_that_fails_fails_all_requests_and_those_after() -> None:
    async def work(runner: EngineRunner, engine: ScriptedEngine) -> None:
        streams = await runner.submit(wanted(2))
        engine.failure = ValueError("out of memory")
        for stream in streams:
            with pytest.raises(EngineFailedError, match="ValueError: out of memory"):
                await all_tokens(stream)
        with pytest.raises(EngineFailedError):
            await runner.submit(wanted(1))
        assert isinstance(runner.failure, EngineFailedError) and runner.open_streams == 0

    run(work, ScriptedEngine(forever, step_s=0.001))


def test_a_submission_that_breaks_the_engine_is_answered() -> None:
    def broken(_prompt: Any, _parameters: Any) -> list[int]:
        raise KeyError("bug")

    async def work(runner: EngineRunner, _engine: ScriptedEngine) -> None:
        with pytest.raises(EngineFailedError, match="KeyError"):
            await runner.submit(wanted(1))

    run(work, ScriptedEngine(broken))


def test_closing_ends_open_answers() -> None:
    async def work(runner: EngineRunner, _engine: ScriptedEngine) -> None:
        [stream] = await runner.submit(wanted(1))
        await asyncio.to_thread(lambda: None)
        runner.end_all(StreamEndedError("the server is shutting down"))
        with pytest.raises(StreamEndedError, match="shutting down"):
            await all_tokens(stream)

    run(work, ScriptedEngine(forever, step_s=0.001))
