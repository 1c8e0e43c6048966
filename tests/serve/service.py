"""Services for tests: a tiny model's text with an engine, as an application or at an address."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn

from generate.chat_factory import END
from raymill.config import load
from raymill.data.text.byte_pairs import byte_alphabet
from raymill.generate.engine.request import DecodingEngine
from raymill.schema.serving import ServeConfig
from raymill.serve.app import ServeApplication
from raymill.serve.keys import ApiKeys
from raymill.serve.model_text import ModelText
from raymill.serve.runner import EngineRunner
from raymill.serve.served_model import ServedModel
from serve.scripted_engine import Answer, ScriptedEngine

TEXT = "Grüße! The answer is 42."


def tokens_of(text: str, end: int | None = END) -> list[int]:
    """Tokens of the byte-level tokenizer of `write_chat_folder`."""
    symbols = _byte_symbols()
    ids = [symbols[byte] for byte in text.encode()]
    return ids if end is None else [*ids, end]


def _byte_symbols() -> dict[int, int]:
    return {byte: number for number, (_, byte) in enumerate(sorted(byte_alphabet().items()), 1)}


def says(text: str) -> Answer:
    """Answer everything with a text."""
    return lambda _prompt, _parameters: tokens_of(text)


def settings(**changes: Any) -> ServeConfig:
    """The settings of conf/, with changes."""
    return replace(_defaults(), **changes)


@cache
def _defaults() -> ServeConfig:
    defaults: ServeConfig = load("serve", []).serve
    return defaults


@cache
def _text(folder: Path) -> ModelText:
    return ModelText(folder)


def served_model(
    folder: Path, engine: DecodingEngine, config: ServeConfig, name: str = "tiny"
) -> ServedModel:
    runner = EngineRunner(engine, waiting=config.queue, write_every_s=config.write_every_s)
    lineage = [
        {"version": "models:/tiny/3", "parent": "models:/tiny/1", "data_digests": ["d" * 64]}
    ]
    return ServedModel(
        name,
        "models:/tiny/3",
        "ab" * 32,
        dict.fromkeys(engine.adapters, "cd" * 32),
        1_700_000_000,
        lineage,
        _text(folder),
        runner,
    )


class Service:
    """An application over one scripted engine."""

    def __init__(
        self,
        folder: Path,
        engine: DecodingEngine | None = None,
        keys: ApiKeys | None = None,
        **changes: Any,
    ) -> None:
        self.engine: Any = engine or ScriptedEngine(says(TEXT))
        self.config = settings(**changes)
        self.model = served_model(folder, self.engine, self.config)
        self.app: ServeApplication = ServeApplication(
            {self.model.id: self.model}, self.config, keys or ApiKeys(())
        )

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_error: object) -> None:
        if isinstance(self.engine, ScriptedEngine):
            self.engine.gate.set()
        self.model.runner.close()


@contextmanager
def at_address(app: ServeApplication) -> Iterator[str]:
    """Serve an application from a thread of this process; yield its address."""
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=0,
        log_level="critical",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: Any, timeout_s: float = 10.0) -> None:
    """Wait for something that another thread does."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it didn't happen in time"
        time.sleep(0.005)


def chat(content: str = "Hello", **fields: Any) -> Mapping[str, Any]:
    """Body of a chat request."""
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], **fields}
