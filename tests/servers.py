"""Servers that tests and benches put in a job's way, and ports for them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import uvicorn
from starlette.types import ASGIApp


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def refusing_server(port: int = 0) -> Iterator[int]:
    """Answers everything with 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET  # noqa: N815 - the name http.server calls

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@contextmanager
def served_in_thread(app: ASGIApp, port: int = 0, **settings: Any) -> Iterator[str]:
    """Serve an application by uvicorn; give its address."""
    bound = socket.create_server(("127.0.0.1", port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        bound.close()


@contextmanager
def hanging_server(port: int = 0) -> Iterator[int]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", port), backlog=16) as listener:
        yield listener.getsockname()[1]


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Moto's, with a bucket called `bucket`; yields what a client finds in its environment."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    endpoint = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(Request(f"{endpoint}/bucket", method="PUT"))
                break
            except OSError:
                assert time.monotonic() < deadline, "moto doesn't answer"
                time.sleep(0.1)
        yield {
            "AWS_ENDPOINT": endpoint,
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """MLflow's own; it takes seconds to answer."""
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
         "--backend-store-uri", f"sqlite:///{folder / 'server.db'}",
         "--artifacts-destination", str(folder / "artifacts")],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
