"""Serving under load: many streams at once, and `transformers serve` with continuous batching for comparison.

    .venv/bin/python bench/serve.py                       # both parts
    .venv/bin/python bench/serve.py --part load --streams 200
    .venv/bin/python bench/serve.py --part versus --json storage/serve.json

A random model of two million parameters answers prompts of 64 tokens with 64 tokens each. The load: as many
streams as asked for, begun at once; every one must end with its usage and `[DONE]`. The comparison: 16 streams
at a time on both servers, turn by turn, greedy. Servers and this client share the cores that this process may
use. Besides tokens per second the table has the server's CPU seconds per 1,024 tokens, which other work on the
machine hardly changes. By default `transformers serve` sizes its cache by the machine's memory, so it
gets blocks of 32 tokens, enough of them for all streams, and 512 tokens a pass.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]

from servers import free_port

PROMPT_TOKENS, ANSWER_TOKENS, VOCABULARY, TURNS = 64, 64, 4096, 3
BLOCK_TOKENS = 32


@dataclass(frozen=True)
class Stream:
    """One answer, as its client saw it; times in seconds from the request."""

    first_s: float
    total_s: float
    tokens: int
    error: str | None = None


@dataclass(frozen=True)
class Figures:
    """One server under one load."""

    server: str
    streams: int
    requests: int
    errors: int
    first_p50_s: float
    first_p99_s: float
    tokens_per_s: float
    cpu_s_per_1024: float


def write_model(folder: Path) -> None:
    """A random nano model with a byte-level tokenizer and a chat template."""
    from tokenizers import AddedToken, Tokenizer

    from data.prepared_factory import _write_tokenizer
    from raymill.config import load
    from raymill.data.messages.template import CHATML
    from raymill.model.build import build_model

    marks = ("<|im_start|>", "<|im_end|>")
    _write_tokenizer(folder, VOCABULARY - len(marks))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(m, special=True, normalized=False) for m in marks])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
    model = build_model(load("pretrain", ["arch=nano"]).arch, VOCABULARY, 0, 1)
    model.save_pretrained(folder)


@contextmanager
def server(command: list[str], port: int, environment: dict[str, str]) -> Iterator[psutil.Process]:
    """Run a server until the block ends; it has started when it answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | environment
        )
        try:
            _wait_until_it_answers(process, port, log)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: Any) -> None:
    from urllib.request import urlopen

    deadline = time.monotonic() + 300
    while True:
        try:
            urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                sys.exit(log.read().decode()[-4000:])
            time.sleep(0.2)


@contextmanager
def raymill_server(folder: Path, storage: Path, *settings: str) -> Iterator[tuple[int, Any]]:
    port = free_port()
    command = [
        sys.executable, "jobs/serve.py", f"model={folder}", f"port={port}", "tracking=none",
        f"storage.root={storage}", *settings,
    ]  # fmt: skip
    with server(command, port, {}) as process:
        yield port, process


@contextmanager
def transformers_server(folder: Path, streams: int) -> Iterator[tuple[int, Any]]:
    port = free_port()
    blocks = streams * -(-(PROMPT_TOKENS + ANSWER_TOKENS) // BLOCK_TOKENS) * 2
    command = [
        str(Path(sys.executable).with_name("transformers")), "serve", str(folder),
        "--continuous-batching", "--device", "cpu", "--port", str(port), "--host", "127.0.0.1",
        "--cb-block-size", str(BLOCK_TOKENS), "--cb-num-blocks", str(blocks),
        "--cb-max-batch-tokens", "512", "--log-level", "error",
    ]  # fmt: skip
    with server(command, port, {"HF_HUB_OFFLINE": "1"}) as process:
        yield port, process


async def ask(
    session: aiohttp.ClientSession, url: str, body: dict[str, Any], wait: asyncio.Event
) -> Stream:
    """Stream one answer to its end."""
    await wait.wait()
    started = time.perf_counter()
    first_s, pieces, usage, done = None, 0, None, False
    try:
        async with session.post(url, json=body) as response:
            if response.status != 200:
                return Stream(0, 0, 0, f"{response.status}: {(await response.text())[:200]}")
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    done = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    return Stream(0, 0, 0, str(event["error"]))
                usage = event.get("usage") or usage
                if any(choice["delta"].get("content") for choice in event.get("choices", ())):
                    pieces += 1
                    first_s = first_s or time.perf_counter() - started
    except (aiohttp.ClientError, OSError) as error:
        return Stream(0, 0, 0, f"{type(error).__name__}: {error}")
    total_s = time.perf_counter() - started
    tokens = usage["completion_tokens"] if usage else pieces
    # transformers sends neither usage nor [DONE]; there, each piece is a token.
    complete = (done and usage is not None) or "stream_options" not in body
    return Stream(first_s or total_s, total_s, tokens, None if complete else "it was cut")


async def load(url: str, streams: int, requests: int, body: dict[str, Any]) -> list[Stream]:
    """Ask `requests` times, `streams` at once."""
    prompts = np.random.default_rng(0).integers(97, 123, (requests, PROMPT_TOKENS - 20))
    begin, gate = asyncio.Event(), asyncio.Semaphore(streams)
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)

    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def one(prompt: Any) -> Stream:
            message = {"role": "user", "content": "".join(map(chr, prompt))}
            async with gate:
                return await ask(session, url, {**body, "messages": [message]}, begin)

        asked = [asyncio.create_task(one(prompt)) for prompt in prompts]
        begin.set()
        return list(await asyncio.gather(*asked))


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds of a server and the processes that it has started."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(member.cpu_times()[:2]) for member in family)


def measure(
    name: str, port: int, process: psutil.Process, streams: int, requests: int, body: dict[str, Any]
) -> Figures:
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    before, started = cpu_s(process), time.perf_counter()
    answers = asyncio.run(load(url, streams, requests, body))
    spent, seconds = cpu_s(process) - before, time.perf_counter() - started
    for answer in answers:
        if answer.error:
            print(f"  {name}: {answer.error}", file=sys.stderr)
            break
    good = [answer for answer in answers if not answer.error]
    first = np.array([answer.first_s for answer in good] or [float("nan")])
    tokens = sum(answer.tokens for answer in good)
    return Figures(
        name, streams, requests, len(answers) - len(good), float(np.percentile(first, 50)),
        float(np.percentile(first, 99)), tokens / seconds, 1024 * spent / max(tokens, 1),
    )  # fmt: skip


def body_of(folder: Path, ours: bool, temperature: float) -> dict[str, Any]:
    body: dict[str, Any] = {"max_tokens": ANSWER_TOKENS, "temperature": temperature, "stream": True}
    if ours:
        return {**body, "model": folder.name, "stream_options": {"include_usage": True}}
    return {**body, "model": str(folder)}


def show(figures: list[Figures]) -> None:
    print(
        "\nserver              streams  requests  errors  first token p50  p99     tokens/s  CPU-s/1024"
    )
    for row in figures:
        print(
            f"{row.server:19} {row.streams:7} {row.requests:9} {row.errors:7} {row.first_p50_s:12.2f} s "
            f"{row.first_p99_s:6.2f} s {row.tokens_per_s:9,.0f} {row.cpu_s_per_1024:11.2f}"
        )


def under_load(folder: Path, storage: Path, streams: int, settings: list[str]) -> Figures:
    wanted = [f"serve.requests={streams}", f"serve.queue={streams}", *settings]
    with raymill_server(folder, storage, *wanted) as (port, process):
        measure("warm-up", port, process, 4, 8, body_of(folder, True, 1.0))
        return measure("raymill", port, process, streams, streams, body_of(folder, True, 1.0))


def versus(folder: Path, storage: Path, streams: int, settings: list[str]) -> list[Figures]:
    """The medians of `TURNS` turns of each server."""
    turns: dict[str, list[Figures]] = {"raymill": [], "transformers serve": []}
    with (
        raymill_server(folder, storage, *settings) as ours,
        transformers_server(folder, streams) as theirs,
    ):
        sides = {"raymill": ours, "transformers serve": theirs}
        for turn in range(TURNS + 1):
            for name, (port, process) in sides.items():
                body = body_of(folder, name == "raymill", 0.0)
                figures = measure(name, port, process, streams, 4 * streams, body)
                # The first turn warms up.
                if turn:
                    turns[name].append(figures)
    return [_median(rows) for rows in turns.values()]


def _median(rows: list[Figures]) -> Figures:
    middle = {
        key: statistics.median(getattr(row, key) for row in rows)
        for key in ("first_p50_s", "first_p99_s", "tokens_per_s", "cpu_s_per_1024")
    }
    first = rows[0]
    errors = sum(row.errors for row in rows)
    return Figures(first.server, first.streams, len(rows) * first.requests, errors, **middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["load", "versus", "both"], default="both")
    parser.add_argument("--streams", type=int, default=200, help="streams of the load")
    parser.add_argument("--at-once", type=int, default=16, help="streams of the comparison")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("settings", nargs="*", help="settings of jobs/serve.py, as serve.slots=32")
    arguments = parser.parse_args()
    figures: list[Figures] = []
    with tempfile.TemporaryDirectory() as name:
        folder, storage = Path(name) / "nano", Path(name) / "storage"
        write_model(folder)
        if arguments.part != "versus":
            figures.append(under_load(folder, storage, arguments.streams, arguments.settings))
        if arguments.part != "load":
            figures += versus(folder, storage, arguments.at_once, arguments.settings)
    show(figures)
    if arguments.part != "load":
        ours, theirs = figures[-2:]
        print(
            f"\nraymill over transformers serve at {arguments.at_once} streams: "
            f"{ours.tokens_per_s / theirs.tokens_per_s:.2f} in tokens/s, "
            f"{theirs.cpu_s_per_1024 / ours.cpu_s_per_1024:.2f} in tokens per CPU-second"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in figures], indent=1))
    if any(row.errors for row in figures):
        sys.exit("some streams failed")


if __name__ == "__main__":
    main()
