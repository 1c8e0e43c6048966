"""Log-probabilities in OpenAI's two forms: of chats, and of completions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raymill.generate.engine.request import DrawnToken, TokenLogProb
from raymill.serve.model_text import ModelText

# JSON has no minus infinity; OpenAI's own stand-in for tokens that are left out.
_IMPOSSIBLE = -9999.0


def chat_log_probs(text: ModelText, tokens: Sequence[DrawnToken]) -> list[dict[str, object]]:
    """Return the entries of `logprobs.content`."""
    entries = []
    for token in tokens:
        assert token.model is not None, "the engine was asked for log-probabilities"
        likeliest = [_entry(text, *pair) for pair in token.model.likeliest]
        entries.append({**_entry(text, token.id, token.model.log_prob), "top_logprobs": likeliest})
    return entries


def _entry(text: ModelText, token: int, log_prob: float) -> dict[str, object]:
    return {
        "token": text.spelling(token),
        "logprob": finite(log_prob),
        "bytes": list(text.token_bytes(token)),
    }


def completion_log_probs(
    text: ModelText,
    ids: Sequence[int],
    log_probs: Sequence[TokenLogProb | None],
    offsets: Sequence[int],
) -> dict[str, object]:
    """Return `logprobs` of a completion; a text's first token has no log-probability."""
    return {
        "tokens": [text.spelling(token) for token in ids],
        "token_logprobs": [None if one is None else finite(one.log_prob) for one in log_probs],
        "top_logprobs": [
            None if one is None else {text.spelling(token): finite(p) for token, p in one.likeliest}
            for one in log_probs
        ],
        "text_offset": list(offsets),
    }


def finite(log_prob: float) -> float:
    """Return a log-probability that JSON can hold."""
    return log_prob if math.isfinite(log_prob) else _IMPOSSIBLE
