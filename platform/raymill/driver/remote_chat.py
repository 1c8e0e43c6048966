"""Conversations with any server that speaks OpenAI's API, Raymill's among them."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2

from raymill.errors import ConfigError, DataError, RaymillError
from raymill.generate.conversation import user_message
from raymill.redaction import redacted
from raymill.schema.chat import ChatJob
from raymill.track.registry import FURTHEST

# Seconds until a server is reached, and between two pieces of an answer: it may be waiting for a slot.
_TIMEOUT = httpx2.Timeout(600, connect=10)
_OPENS, _CLOSES = "<think>\n", "\n</think>\n\n"


class ServerError(RaymillError):
    """A server can't be reached, or refuses a request, or fails in the middle of an answer."""


class RemoteModel:
    """Model behind the `url` of a job, such as `http://127.0.0.1:8000/v1`.

    `name`: as requests name it, the first that the server offers if the job names none; `answered`: as the last
    answer named the model that drew it.

    Raises:
        ConfigError: the address isn't one.
        ServerError: the server can't be reached, or offers no model.
    """

    def __init__(self, job: ChatJob) -> None:
        assert job.url is not None, "only a job with an address gets here"
        self._url = job.url.rstrip("/")
        self._sampling = {
            "max_tokens": job.max_new_tokens,
            "temperature": job.temperature,
            "top_p": job.top_p,
        }
        key = job.api_key or os.environ.get("OPENAI_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            if httpx2.URL(self._url).scheme not in ("http", "https"):
                raise httpx2.InvalidURL("it begins with neither http:// nor https://")
            # Redirects aren't followed: they could lead the key elsewhere.
            self._client = httpx2.Client(headers=headers, timeout=_TIMEOUT)
        except (httpx2.InvalidURL, UnicodeEncodeError) as error:
            # The error of a key with odd characters would spell the key.
            reason = error if isinstance(error, httpx2.InvalidURL) else "the key isn't ASCII"
            raise ConfigError([f"url={redacted(job.url)}: {reason}"]) from None
        self.name = self._first_model() if job.model == FURTHEST else job.model
        self.answered = self.name

    def chat(self, messages: list[dict[str, str]], seed: int) -> Generator[str]:
        """Yield the pieces of an answer; thoughts come between `<think>` and `</think>`."""
        thinking = False
        for choice in self._stream("chat/completions", {"messages": messages}, seed):
            delta = choice.get("delta") or {}
            if thought := delta.get("reasoning_content") or delta.get("reasoning"):
                yield thought if thinking else _OPENS + thought
                thinking = True
            if content := delta.get("content"):
                yield _CLOSES + content if thinking else content
                thinking = False

    def continue_text(self, prompt: str, seed: int) -> Generator[str]:
        """Yield the pieces of a text behind a prompt."""
        for choice in self._stream("completions", {"prompt": prompt}, seed):
            if text := choice.get("text"):
                yield text

    def _first_model(self) -> str:
        with self._errors():
            response = self._client.get(f"{self._url}/models")
        self._refuse_unless_ok(response)
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError) as error:
            raise ServerError(
                f"{self._shown}/models lists no model; is this the address of an OpenAI-compatible API, which "
                "usually ends in /v1? If so, give model=NAME."
            ) from error

    def _stream(self, path: str, request: Mapping[str, Any], seed: int) -> Iterator[dict[str, Any]]:
        """Yield the first choice of each chunk of a streamed answer."""
        body = {
            "model": self.name, "stream": True, "seed": seed, **self._sampling, **request,
        }  # fmt: skip
        with (
            self._errors(),
            self._client.sse(f"{self._url}/{path}", method="POST", json=body) as events,
        ):
            self._refuse_unless_ok(events.response)
            for event in events:
                if event.data == "[DONE]":
                    return
                chunk = self._chunk(event.data)
                self.answered = chunk.get("model") or self.answered
                yield from (chunk.get("choices") or [])[:1]

    def _chunk(self, data: str) -> dict[str, Any]:
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            raise ServerError(
                f"{self._shown} sent an event that isn't a JSON object: {data[:80]!r}"
            )
        if (error := chunk.get("error")) is not None:
            raise ServerError(f"{self._shown} failed: {_message(error)}")
        return chunk

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ServerError(f"{self._shown}: {redacted(reason)}") from error

    def _refuse_unless_ok(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        text = response.read().decode(errors="replace")
        try:
            tree = json.loads(text)
            reason = _message(tree["error"] if "error" in tree else tree["detail"])
        except (ValueError, LookupError, TypeError):
            reason = " ".join(text.split())[:200] or response.reason_phrase
        advice = "; set OPENAI_API_KEY or api_key=" if response.status_code == 401 else ""
        raise ServerError(f"{self._shown} answered {response.status_code}: {reason}{advice}")

    @property
    def _shown(self) -> str:
        return redacted(self._url)


class RemoteSession:
    """Conversation whose turns are sent to the server again with each question; see `Dialogue`."""

    def __init__(self, model: RemoteModel, system: str | None) -> None:
        self._model = model
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[dict[str, str]] = []
        self.seeds: list[int] = []

    @property
    def messages(self) -> list[dict[str, str]]:
        """All messages so far."""
        return [*self._system, *self._turns]

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._turns, self.seeds = [], []

    def undo(self) -> None:
        """Take back the last question and its answer.

        Raises:
            DataError: there is none.
        """
        if not self._turns:
            raise DataError("There is nothing to take back.")
        del self._turns[-2:], self.seeds[-1]

    def ask(self, text: str, seed: int) -> Generator[str]:
        """Yield the pieces of an answer; if closed early, remember the part received so far.

        Raises:
            DataError: the text isn't UTF-8.
            ServerError: the server refuses, or fails.
        """
        question = user_message(text)
        received = ""
        try:
            for piece in self._model.chat([*self.messages, question], seed):
                received += piece
                yield piece
        finally:
            if received:
                # Templates expect earlier turns without their thoughts.
                content = received.split(_CLOSES)[-1] if received.startswith(_OPENS) else received
                self._turns += [question, {"role": "assistant", "content": content}]
                self.seeds.append(seed)


def _message(error: object) -> str:
    """Return the message of an error in OpenAI's form, or in that of other servers."""
    text = error.get("message") if isinstance(error, dict) else error
    return redacted(" ".join(str(text).split())[:500])
