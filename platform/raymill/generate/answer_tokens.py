"""One answer, token by token, from an engine that has nothing else to do."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raymill.generate.engine.request import DecodingEngine, SamplingParameters


def draw(
    engine: DecodingEngine, prompt: Sequence[int], parameters: SamplingParameters
) -> Generator[int]:
    """Yield an answer's tokens, its stop token included; closed early, the request is canceled.

    The engine is stepped here, so it may have no other requests.

    Raises:
        RequestError: the prompt is too long, or a parameter isn't supported.
    """
    key = engine.submit(prompt, parameters)
    try:
        while engine.busy:
            for progress in engine.step():
                yield from (token.id for token in progress.tokens)
    finally:
        engine.cancel(key)
