"""Conversations with a server: what is sent, what is printed, and what is said when it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from driver.test_chat import type_lines
from generate.chat_factory import write_chat_folder
from raymill.config import load
from raymill.config.entry import main
from raymill.driver.chat import chat
from raymill.generate.build import build_engine
from raymill.generate.load import load_model
from serve.service import Service, at_address

KEY = "sk-very-secret"


class FakeServer(ThreadingHTTPServer):
    """OpenAI's API with answers of chunks; an answer may also be (status, text)."""

    daemon_threads = True

    def __init__(self, *answers: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = list(answers)
        self.requests: list[tuple[str, dict[str, Any], str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(200, "application/json", json.dumps({"data": [{"id": "small"}]}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body, self.headers["Authorization"]))
        answer = self.server.answers.pop(0)
        if isinstance(answer, tuple):
            self._answer(answer[0], "application/json", answer[1])
            return
        events = "".join(f": keep-alive\n\ndata: {json.dumps(chunk)}\n\n" for chunk in answer)
        self._answer(200, "text/event-stream", f"{events}data: [DONE]\n\n")

    def _answer(self, status: int, kind: str, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture
def start() -> Iterator[Any]:
    servers = list[FakeServer]()

    def started(*answers: Any) -> FakeServer:
        server = FakeServer(*answers)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    yield started
    for server in servers:
        server.shutdown()
        server.server_close()


def delta(**fields: str) -> dict[str, Any]:
    return {"model": "models:/small/3", "choices": [{"index": 0, "delta": fields}]}


def test_a_conversation_with_a_server(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start(
        [delta(role="assistant"), delta(content="Hé"), delta(content="llo."), {"choices": []}],
        [delta(reasoning_content="Hm"), delta(reasoning_content="."), delta(content="Yes.")],
        [delta(content="Again.")],
    )
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    file = tmp_path / "talk.json"
    type_lines(monkeypatch, "Hi", "Really?", "/undo", "And?", f"/save {file}")
    job = load("chat", [f"url={server.url}/", "system=Sys", "seed=4", "temperature=0"])
    assert chat(job) == 0
    printed = capsys.readouterr()
    assert printed.out == "Héllo.\n<think>\nHm.\n</think>\n\nYes.\nAgain.\n\n"
    assert printed.err.startswith("small\n")
    system = {"role": "system", "content": "Sys"}
    first = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Héllo."}]
    asked = [system, {"role": "user", "content": "Hi"}]
    path, body, key = server.requests[0]
    assert (path, key) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert body == {
        "model": "small", "stream": True, "seed": 4, "max_tokens": 128, "temperature": 0,
        "top_p": 0.95, "messages": asked,
    }  # fmt: skip
    assert server.requests[2][1]["messages"] == [
        system,
        *first,
        {"role": "user", "content": "And?"},
    ]
    saved = json.loads(file.read_text())
    assert saved["model"] == "models:/small/3", "as the server names it"
    assert saved["seeds"] == [4, 6]
    assert saved["messages"][-1]["content"] == "Again."
    assert KEY not in printed.out + printed.err + file.read_text() + repr(job)


def test_thoughts_are_not_sent_back(
    start: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start([delta(reasoning_content="Hm."), delta(content="Yes.")], [delta(content="Ok")])
    type_lines(monkeypatch, "Really?", "And?")
    chat(load("chat", [f"url={server.url}", "model=named", f"api_key={KEY}"]))
    assert server.requests[1][1]["messages"][1] == {"role": "assistant", "content": "Yes."}
    assert server.requests[1][1]["model"] == "named"
    assert server.requests[1][2] == f"Bearer {KEY}"


def test_a_server_continues_text(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = start([{"choices": [{"text": " two"}]}, {"choices": [{"text": " three"}]}])
    chat(load("chat", [f"url={server.url}", "chat=false", "prompt=one"]))
    assert capsys.readouterr().out == "one two three\n"
    path, body, _ = server.requests[0]
    assert (path, body["prompt"]) == ("/v1/completions", "one")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (401, json.dumps({"error": {"message": "Wrong key."}})),
            "answered 401: Wrong key.; set OPENAI_API_KEY or api_key=",
        ),
        (
            (503, json.dumps({"error": {"message": "The queue is full."}})),
            "503: The queue is full.",
        ),
        ((422, json.dumps({"detail": "no such model"})), "422: no such model"),
        ((500, "<h1>Oh</h1>"), "500: <h1>Oh</h1>"),
        ((200, "{}"), "text/event-stream"),
        ([delta(content="So"), {"error": {"message": "A worker died."}}], "failed: A worker died."),
        ([[1]], "isn't a JSON object"),
    ],
)
def test_a_server_that_fails_is_quoted(
    start: Any, answer: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server = start(answer)
    assert main("chat", chat, [f"url={server.url}", "prompt=Hi", f"api_key={KEY}"]) == 1
    printed = capsys.readouterr().err
    assert message in printed and server.url in printed
    assert KEY not in printed


def test_a_server_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    server = FakeServer()
    server.server_close()
    assert main("chat", chat, [f"url={server.url}", "prompt=Hi"]) == 1
    assert f"error: {server.url}: " in capsys.readouterr().err
    assert main("chat", chat, ["url=u:secret@localhost/v1", "prompt=Hi"]) == 2
    printed = capsys.readouterr().err
    assert "begins with neither http:// nor https://" in printed


def test_a_key_that_no_header_can_hold_is_not_repeated(
    start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"url={start().url}", "prompt=Hi", "api_key=sécret"]
    assert main("chat", chat, given) == 2
    printed = capsys.readouterr().err
    assert "the key isn't ASCII" in printed and "sécret" not in printed


def test_an_interrupted_answer_is_remembered(
    start: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raymill.driver.remote_chat import RemoteModel, RemoteSession

    server = start([delta(content="One"), delta(content="Two")])
    session = RemoteSession(RemoteModel(load("chat", [f"url={server.url}"])), None)
    pieces = session.ask("Hi", 3)
    assert next(pieces) == "One"
    pieces.close()
    assert [message["content"] for message in session.messages] == ["Hi", "One"]
    assert session.seeds == [3]


def test_the_same_model_says_the_same_here_and_behind_an_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_chat_folder(tmp_path / "model")
    engine = build_engine(load_model(folder)[0], slots=2)
    capsys.readouterr()
    given = [
        "tracking=none",
        "prompt=What is it?",
        "system=Sys",
        "max_new_tokens=20",
        "temperature=1",
    ]
    chat(load("chat", [f"model={folder}", *given, "seed=3"]))
    here = capsys.readouterr().out
    with Service(folder, engine) as service, at_address(service.app) as address:
        chat(load("chat", [f"url={address}/v1", *given, "seed=3"]))
        there = capsys.readouterr()
        chat(load("chat", [f"url={address}/v1", *given, "seed=4"]))
    assert there.out == here != capsys.readouterr().out
    assert there.err == "tiny\n"
