"""An engine without a model: it gives scripted answers, at any speed, or fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from raymill.generate.engine.request import (
    DrawnToken,
    EngineCounts,
    Progress,
    RequestError,
    SamplingParameters,
    TokenLogProb,
)

Answer = Callable[[Sequence[int], SamplingParameters], Sequence[int]]


class ScriptedEngine:
    """See `DecodingEngine`. `answer` returns the tokens of a request's answer, which end with a stop token or
    are cut; a step takes `step_s`; while `gate` isn't set, no step ends. `failure` is raised by the next step.
    """

    def __init__(
        self,
        answer: Answer,
        *,
        slots: int = 4,
        positions: int | None = 256,
        step_s: float = 0.0,
        adapters: Sequence[str] = (),
    ) -> None:
        self._answer, self._slots, self.positions, self.step_s = answer, slots, positions, step_s
        self.adapters = tuple(adapters)
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.submitted: list[tuple[list[int], SamplingParameters]] = []
        self._rest: dict[int, list[int]] = {}
        self._drawn: dict[int, int] = {}
        self._prefilled = self._reused = self._total = self._passes = 0

    @property
    def busy(self) -> bool:
        return bool(self._rest)

    def submit(self, prompt: Sequence[int], parameters: SamplingParameters) -> int:
        if parameters.min_p:
            raise RequestError("min_p", "this engine has no min_p")
        key = len(self.submitted)
        self.submitted.append((list(prompt), parameters))
        self._rest[key] = list(self._answer(prompt, parameters))
        self._drawn[key] = 0
        return key

    def cancel(self, key: int) -> None:
        self._rest.pop(key, None)

    def step(self) -> list[Progress]:
        self.gate.wait()
        time.sleep(self.step_s)
        if self.failure is not None:
            raise self.failure
        self._passes += 1
        return [self._advance(key) for key in list(self._rest)[: self._slots]]

    def counts(self) -> EngineCounts:
        running = min(len(self._rest), self._slots)
        waiting = len(self._rest) - running
        return EngineCounts(
            self._slots, running, waiting, self._prefilled, self._reused, self._total, self._passes
        )

    def _advance(self, key: int) -> Progress:
        prompt, parameters = self.submitted[key]
        token, first = self._rest[key].pop(0), not self._drawn[key]
        self._drawn[key] += 1
        self._total += 1
        finish = None
        if token in parameters.stop_ids:
            finish = "stop"
        elif self._drawn[key] >= parameters.max_new_tokens or not self._rest[key]:
            finish = "length"
        if finish is not None:
            del self._rest[key]
        if not first:
            return Progress(key, (_drawn(token, parameters),), finish)
        # Of every prompt, one token less than half of it was cached.
        reused = (len(prompt) - 1) // 2
        self._reused += reused
        self._prefilled += len(prompt) - reused
        scores = tuple(_score(one, parameters) for one in prompt[1:])
        wanted = scores if parameters.prompt_log_probs else None
        return Progress(key, (_drawn(token, parameters),), finish, wanted, reused)


def _drawn(token: int, parameters: SamplingParameters) -> DrawnToken:
    asked = parameters.top_log_probs is not None
    return DrawnToken(token, _score(token, parameters) if asked else None)


def _score(token: int, parameters: SamplingParameters) -> TokenLogProb:
    count = parameters.top_log_probs or 0
    likeliest = tuple((token + number, -0.5 - number) for number in range(count))
    return TokenLogProb(-0.5, likeliest)
