"""A service as a reward: its address stands where a function's name would.

One POST for each sample, `{"prompt": [messages], "answer": text, "reference": text or null, "extra":
{}}`, answered by `{"reward": number}`. What can be expected to pass (a refused or broken connection,
429, 5xx) is tried again within the sample's time; anything else is an error of that sample.
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
from raymill.rl.reward.task import RewardError, Sample, Score, failed, judged

CONCURRENT = 8
ATTEMPTS = 5
PAUSE_SECONDS = 0.2  # doubled after each attempt
_REPLY_BYTES = 2**20
_GRACE_SECONDS = 5.0


class Endpoint:
    """A service that scores samples, several at a time; `timeout_s` is for a sample, retries included.

    Raises:
        RewardError: the address can't be one.
    """

    def __init__(self, address: str, *, timeout_s: float, concurrent: int = CONCURRENT) -> None:
        if problems := list(address_problems(address)):
            raise RewardError(f"no address: {redacted_value(address)}, {'; '.join(problems)}")
        self.address = address
        self.timeout_s = timeout_s
        self.concurrent = concurrent

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Scores in the order of `samples`; returns in bounded time, whatever the service does."""
        waiting: SimpleQueue[int] = SimpleQueue()
        done: SimpleQueue[tuple[int, Score]] = SimpleQueue()
        for place in range(len(samples)):
            waiting.put(place)

        def serve() -> None:
            with contextlib.suppress(Empty):
                while True:
                    place = waiting.get_nowait()
                    done.put((place, self.ask(samples[place])))

        threads = min(self.concurrent, len(samples))
        for _ in range(threads):
            # Looking up a name can't be interrupted: a thread that does is left to itself at the end.
            threading.Thread(target=serve, daemon=True).start()
        rounds = math.ceil(len(samples) / max(threads, 1))
        deadline = time.monotonic() + rounds * self.timeout_s + _GRACE_SECONDS
        scores: list[Score] = [failed("timeout: the service's name isn't resolved")] * len(samples)
        with contextlib.suppress(Empty):
            for _ in samples:
                place, score = done.get(timeout=max(0.0, deadline - time.monotonic()))
                scores[place] = score
        return scores

    def ask(self, sample: Sample) -> Score:
        """One sample's score, within `timeout_s`."""
        begin = time.monotonic()
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
            return failed(f"not sendable: {error}")
        why = f"timeout: no answer within {self.timeout_s:g} s"
        for attempt in range(ATTEMPTS):
            left = begin + self.timeout_s - time.monotonic()
            pause = PAUSE_SECONDS * 2 ** (attempt - 1) if attempt else 0.0
            if left <= pause:
                break
            time.sleep(pause)
            try:
                value = self._post(body, left - pause)
            except _PassingError as passing:
                why = str(passing)
            except RewardError as final:
                return failed(self._masked(str(final)), time.monotonic() - begin)
            else:
                return judged(value, time.monotonic() - begin)
        return failed(self._masked(why), time.monotonic() - begin)

    def _masked(self, why: str) -> str:
        """A reason without the address's secrets, which services like to repeat."""
        for word in sorted(secrets_of(self.address), key=len, reverse=True):
            why = why.replace(word, MASK)
        return why

    def _post(self, body: bytes, seconds: float) -> float:
        parts = urlsplit(self.address)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        connection = kind(parts.hostname or "", parts.port, timeout=seconds)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Content-Type": "application/json", "Connection": "close"}
        late = RewardError(f"timeout: no answer within {self.timeout_s:g} s")
        with _shut_after(seconds, connection) as shut:
            try:
                connection.request("POST", target, body, headers)
                response = connection.getresponse()
                status, reply = response.status, response.read(_REPLY_BYTES + 1)
                if response.length and len(reply) <= _REPLY_BYTES:
                    raise http.client.IncompleteRead(reply, response.length)
            except TimeoutError:
                raise late from None
            except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                # The last two: the connection was shut in the middle of something.
                if shut.is_set():
                    raise late from None
                raise _PassingError(f"no connection: {type(error).__name__}: {error}") from None
            if shut.is_set():
                raise late
        if status == 429 or status >= 500:
            raise _PassingError(f"http {status}: {_beginning(reply)}")
        if status != 200:
            raise RewardError(f"http {status}: {_beginning(reply)}")
        return _reward(reply)


def address_problems(address: str) -> Iterator[str]:
    """What keeps a service from being called at this address."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:  # whose text may repeat a password
        yield "not an address: expected http://host:port/path"
        return
    if not parts.hostname or port == 0:
        yield "expected http://host:port/path"
    if parts.username is not None or parts.password is not None:
        yield "a password in an address would be logged with it; let the service trust the network"
    if parts.fragment:
        yield f"#{parts.fragment} is never sent to a service; leave it out"


class _PassingError(Exception):
    """A failure after which another attempt may succeed."""


@contextlib.contextmanager
def _shut_after(
    seconds: float, connection: http.client.HTTPConnection
) -> Iterator[threading.Event]:
    """Shut the connection after so many seconds in all, however slowly its bytes drip, and say so."""
    done = threading.Event()

    def shut() -> None:
        done.set()
        with contextlib.suppress(OSError, AttributeError):  # not open yet, or closed already
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut)
    timer.daemon = True
    timer.start()
    try:
        yield done
    finally:
        timer.cancel()
        connection.close()


def _reward(reply: bytes) -> float:
    if len(reply) > _REPLY_BYTES:
        raise RewardError(f"malformed reply: longer than {_REPLY_BYTES} bytes")
    try:
        found = json.loads(reply)
    except (ValueError, RecursionError):
        raise RewardError(f"malformed reply: not JSON, {_beginning(reply)}") from None
    reward = found.get("reward") if isinstance(found, dict) else None
    if not isinstance(reward, int | float) or isinstance(reward, bool):
        raise RewardError(f'malformed reply: expected {{"reward": number}}, {_beginning(reply)}')
    return reward


def _beginning(reply: bytes) -> str:
    return f"found {reply[:100].decode(errors='replace')!r}"
