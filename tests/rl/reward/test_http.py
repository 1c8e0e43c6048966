"""A service as a reward, against a server that does what servers do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from raymill.rl.reward import http
from raymill.rl.reward.http import Endpoint
from raymill.rl.reward.task import RewardError
from rl.reward.samples import sample
from rl.reward.service import Handler, Service


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(http, "PAUSE_SECONDS", 0.02)
    with Service() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.stop.set()
        server.shutdown()


def test_scores_are_in_order_and_everything_is_sent(service: Service) -> None:
    samples = [sample("a" * n, "ref", extra={"n": n}) for n in range(20)]
    scores = service.endpoint("length").score(samples)
    assert [score.value for score in scores] == list(range(20))
    assert [
        body["extra"]["n"] for body in sorted(service.bodies, key=lambda b: len(b["answer"]))
    ] == [*range(20)]
    assert service.bodies[0]["prompt"] == [{"role": "user", "content": "?"}]
    assert {body["reference"] for body in service.bodies} == {"ref"}
    assert service.endpoint("length").score([]) == []


def test_samples_are_scored_side_by_side(service: Service) -> None:
    scores = service.endpoint("together", timeout_s=30, concurrent=8).score([sample("x")] * 8)
    assert [score.value for score in scores] == [1.0] * 8
    assert all(score.seconds > 0 for score in scores)


@pytest.mark.parametrize("path", ["recovers", "resets"])
def test_what_passes_is_tried_again(service: Service, path: str) -> None:
    assert service.endpoint(path).score_one(sample("x")).value == 0.5
    assert service.attempts[path] in (2, 3)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_but_not_for_ever(service: Service, status: int) -> None:
    score = service.endpoint(f"status{status}").score_one(sample("x"))
    assert score.value is None and score.cause == f"http {status}"
    assert service.attempts[f"status{status}"] == http.ATTEMPTS


@pytest.mark.parametrize("status", [201, 301, 400, 404])
def test_what_would_not_pass_is_not_tried_again(service: Service, status: int) -> None:
    assert service.endpoint(f"status{status}").score_one(sample("x")).cause == f"http {status}"
    assert service.attempts[f"status{status}"] == 1


@pytest.mark.parametrize("path", ["hangs", "drips", "drips_headers"])
def test_the_time_limit_holds_however_slowly_it_answers(service: Service, path: str) -> None:
    begin = time.monotonic()
    scores = service.endpoint(path, timeout_s=0.6).score([sample("x")] * 2)
    assert [score.cause for score in scores] == ["timeout"] * 2
    assert time.monotonic() - begin < 15, "it hangs for longer"


@pytest.mark.parametrize("path", ["no_http", "short", "nothing"])
def test_what_is_no_http_is_an_error(service: Service, path: str) -> None:
    assert service.endpoint(path).score_one(sample("x")).cause == "no connection"


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"garbage", "malformed reply"), (b"", "malformed reply"), (b"\xff\xfe", "malformed reply"),
        (b"[" * 100_000, "malformed reply"), (b"[1.0]", "malformed reply"), (b"1.0", "malformed reply"),
        (b'{"score": 1}', "malformed reply"), (b'{"reward": "1"}', "malformed reply"),
        (b'{"reward": null}', "malformed reply"), (b'{"reward": true}', "malformed reply"),
        (b'{"reward": NaN}', "not finite"), (b'{"reward": 1e999}', "not finite"),
        (b'{"reward": ' + b"9" * 400 + b"}", "not a number"),
        (b'{"reward": ' + b"9" * 5000 + b"}", "malformed reply"),
        (b'{"reward": -0.5, "more": {}}', None),
    ],
)  # fmt: skip
def test_replies(
    service: Service, body: bytes, cause: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "do_POST", lambda self: self.send_raw(200, body))
    score = service.endpoint("any").score_one(sample("x"))
    assert (score.cause, score.value) == (cause, -0.5 if cause is None else None)


def test_a_reply_without_end_is_cut(service: Service) -> None:
    assert service.endpoint("endless").score_one(sample("x")).cause == "malformed reply"


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    score = Endpoint(f"http://127.0.0.1:{port}/", timeout_s=0.5).score_one(sample("x"))
    assert score.cause == "no connection"
    assert Endpoint("http://no-such-host.invalid/", timeout_s=0.5).score_one(sample("x")).cause in (
        "no connection", "timeout",
    )  # fmt: skip


def test_what_is_not_json_is_not_sent(service: Service) -> None:
    for extra in ({"a": object()}, {"a": float("nan")}):
        assert (
            service.endpoint("length").score_one(sample("x", extra=extra)).cause == "not sendable"
        )
    assert service.bodies == []


def test_names_that_take_for_ever_to_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    released, before = threading.Event(), threading.enumerate()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait(60) and [])
    monkeypatch.setattr(http, "_GRACE_SECONDS", 0.1)
    begin = time.monotonic()
    scores = Endpoint("http://slow.example/", timeout_s=0.2).score([sample("x")] * 3)
    assert [score.cause for score in scores] == ["timeout"] * 3
    assert time.monotonic() - begin < 30
    released.set()
    # They must end before the patch does.
    for thread in threading.enumerate():
        if thread not in before:
            thread.join(30)


def test_an_address_must_be_one() -> None:
    with pytest.raises(RewardError, match=r"^no address: "):
        Endpoint("http://", timeout_s=1.0)
