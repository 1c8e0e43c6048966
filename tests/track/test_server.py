"""Timeouts: large files get the time that a server takes to store them; other requests don't."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from raymill.config import load
from raymill.track import server as server_module
from raymill.track.server import connect, transfer_timeout, upload

ANSWERS_AFTER_S = 1.5


@contextmanager
def storing_server(files: dict[str, bytes]) -> Iterator[str]:
    """A server that takes artifacts as MLflow's does, and answers after a while."""

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(ANSWERS_AFTER_S)
            files[self.path] = data
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


class Client:
    """Return the part of a server that handles artifacts."""

    def __init__(self, address: str) -> None:
        self.address = address

    def log_artifacts(self, run_id: str, folder: str, place: str) -> None:
        from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository

        HttpArtifactRepository(self.address).log_artifacts(folder, f"{run_id}/{place}")


def test_an_upload_may_take_longer_than_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(server_module, "_SLOWEST_BYTES_PER_S", 0.1)
    tracking = load("pretrain", ["experiment=tiny", f"storage.root={tmp_path}"]).tracking
    connect(tracking, tmp_path)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1", "what the user has set stays"
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    files: dict[str, bytes] = {}
    with storing_server(files) as address:
        client: Any = Client(address)
        upload(client, "run", folder, "model")
    assert files == {"/run/model/model.safetensors": b"weights"}
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"


def test_the_limit_grows_with_the_largest_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    for size, limit in ((0, "10"), (1, "11"), (2**30, "113"), (5 * 2**30, "522")):
        with transfer_timeout(size):
            assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == limit
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
