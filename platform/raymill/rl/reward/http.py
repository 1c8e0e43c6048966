"""Rewards computed by an HTTP service, configured by its address in place of a function's name.

Each sample is one POST of `{"prompt": [messages], "answer": text, "reference": text or null, "extra": {}}`,
answered by `{"reward": number}`. Temporary failures (a refused or broken connection, 429, 5xx) are retried
within the sample's time limit; any other failure is an error of that sample.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from urllib.parse import urlsplit

from raymill.redaction import MASK, redacted_value, secrets_of
from raymill.rl.reward.task import RewardError, Sample, Score, failed_score, score_of

CONCURRENT = 8
ATTEMPTS = 5
# Doubled after each attempt.
PAUSE_SECONDS = 0.2
_REPLY_BYTES = 2**20
_GRACE_SECONDS = 5.0


class Endpoint:
    """Service that scores samples, several at a time; `timeout_s` limits a sample, retries included.

    Raises:
        RewardError: the address is malformed.
    """

    def __init__(self, address: str, *, timeout_s: float, concurrent: int = CONCURRENT) -> None:
        if problems := list(address_problems(address)):
            raise RewardError(f"no address: {redacted_value(address)}, {'; '.join(problems)}")
        self.address = address
        self.timeout_s = timeout_s
        self.concurrent = concurrent

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Return scores in the order of `samples`, in bounded time whatever the service does."""
        waiting: SimpleQueue[int] = SimpleQueue()
        done: SimpleQueue[tuple[int, Score]] = SimpleQueue()
        for index in range(len(samples)):
            waiting.put(index)

        def serve() -> None:
            with contextlib.suppress(Empty):
                while True:
                    index = waiting.get_nowait()
                    done.put((index, self.score_one(samples[index])))

        threads = min(self.concurrent, len(samples))
        for _ in range(threads):
            # Daemon threads, because a name lookup can't be interrupted: a thread that hangs in one is
            # abandoned.
            threading.Thread(target=serve, daemon=True).start()
        rounds = math.ceil(len(samples) / max(threads, 1))
        deadline = time.monotonic() + rounds * self.timeout_s + _GRACE_SECONDS
        unresolved = failed_score("timeout: the service's name isn't resolved")
        scores: list[Score] = [unresolved] * len(samples)
        with contextlib.suppress(Empty):
            for _ in samples:
                index, score = done.get(timeout=max(0.0, deadline - time.monotonic()))
                scores[index] = score
        return scores

    def score_one(self, sample: Sample) -> Score:
        """Return a sample's score within `timeout_s`."""
        started = time.monotonic()
        try:
            body = json.dumps(
                {
                    "prompt": sample.prompt_messages,
                    "answer": sample.answer_text,
                    "reference": sample.reference,
                    "extra": dict(sample.extra),
                },
                allow_nan=False,
            ).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return failed_score(f"not sendable: {error}")
        reason = f"timeout: no answer within {self.timeout_s:g} s"
        for attempt in range(ATTEMPTS):
            left = started + self.timeout_s - time.monotonic()
            pause = PAUSE_SECONDS * 2 ** (attempt - 1) if attempt else 0.0
            if left <= pause:
                break
            time.sleep(pause)
            try:
                value = self._post(body, left - pause)
            except _TemporaryError as temporary:
                reason = str(temporary)
            except RewardError as final:
                return failed_score(self._masked(str(final)), time.monotonic() - started)
            else:
                return score_of(value, time.monotonic() - started)
        return failed_score(self._masked(reason), time.monotonic() - started)

    def _masked(self, reason: str) -> str:
        """Mask the address's secrets in a reason, where services often repeat them."""
        for word in sorted(secrets_of(self.address), key=len, reverse=True):
            reason = reason.replace(word, MASK)
        return reason

    def _post(self, body: bytes, seconds: float) -> float:
        """Send a sample once and return its reward.

        Raises:
            _TemporaryError: another attempt may succeed.
            RewardError: the sample can't be scored.
        """
        parts = urlsplit(self.address)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(parts.hostname or "", parts.port, timeout=seconds)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Content-Type": "application/json", "Connection": "close"}
        late = RewardError(f"timeout: no answer within {self.timeout_s:g} s")
        with _closed_after(seconds, connection) as closed:
            try:
                connection.request("POST", target, body, headers)
                response = connection.getresponse()
                status, reply = response.status, response.read(_REPLY_BYTES + 1)
                if response.length and len(reply) <= _REPLY_BYTES:
                    raise http.client.IncompleteRead(reply, response.length)
            except TimeoutError:
                raise late from None
            except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                # http.client raises the last two when the connection is closed while it is being used.
                if closed.is_set():
                    raise late from None
                raise _TemporaryError(f"no connection: {type(error).__name__}: {error}") from None
            if closed.is_set():
                raise late
        if status == 429 or status >= 500:
            raise _TemporaryError(f"http {status}: {_excerpt(reply)}")
        if status != 200:
            raise RewardError(f"http {status}: {_excerpt(reply)}")
        return _reward(reply)


def is_address(name: str) -> bool:
    """Tell whether a name in `reward.functions` is the address of a service."""
    return name.startswith(("http://", "https://"))


def address_problems(address: str) -> Iterator[str]:
    """Yield the reasons why no service can be called at this address."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        # Its own message may repeat a password, so it isn't shown.
        yield "not an address: expected http://host:port/path"
        return
    if not parts.hostname or port == 0:
        yield "expected http://host:port/path"
    if parts.username is not None or parts.password is not None:
        yield "a password in an address would be logged with it; let the service trust the network"
    if parts.fragment:
        yield f"#{parts.fragment} is never sent to a service; leave it out"


class _TemporaryError(Exception):
    """Failure after which another attempt may succeed."""


@contextlib.contextmanager
def _closed_after(
    seconds: float, connection: http.client.HTTPConnection
) -> Iterator[threading.Event]:
    """Close the connection after a total time, and set the event that is yielded.

    A socket's own timeout starts again with every byte, so a service that sends slowly would never reach it.
    """
    closed = threading.Event()

    def close() -> None:
        closed.set()
        # The connection may not be open yet, or closed already.
        with contextlib.suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, close)
    timer.daemon = True
    timer.start()
    try:
        yield closed
    finally:
        timer.cancel()
        connection.close()


def _reward(reply: bytes) -> float:
    if len(reply) > _REPLY_BYTES:
        raise RewardError(f"malformed reply: longer than {_REPLY_BYTES} bytes")
    try:
        parsed = json.loads(reply)
    except (ValueError, RecursionError):
        raise RewardError(f"malformed reply: not JSON, {_excerpt(reply)}") from None
    reward = parsed.get("reward") if isinstance(parsed, dict) else None
    if not isinstance(reward, int | float) or isinstance(reward, bool):
        raise RewardError(f'malformed reply: expected {{"reward": number}}, {_excerpt(reply)}')
    return reward


def _excerpt(reply: bytes) -> str:
    return f"found {reply[:100].decode(errors='replace')!r}"
