"""Votes as the chat page sends them."""

from __future__ import annotations

import itertools
from typing import Any

VERSION = "models:/assistant/3"
DIGESTS = {VERSION: "3" * 64, "models:/assistant/4": "4" * 64}
_ids = itertools.count()


def answer(text: str, version: str = VERSION, seed: int = 7, **given: Any) -> dict[str, Any]:
    """An answer as the page received it."""
    settings = {"temperature": 0.8, "top_p": 0.95, "max_tokens": 64}
    return {
        "text": text, "finish": "stop", "version": version, "seed": seed, "settings": settings, **given,
    }  # fmt: skip


def vote(question: str, *answers: dict[str, Any], **given: Any) -> dict[str, Any]:
    """A vote of Ada's, the first answer being the best unless `given` says otherwise."""
    return {
        "id": f"vote-{next(_ids):08}",
        "annotator": "Ada",
        "seconds": 2.5,
        "messages": [{"role": "user", "content": question}],
        "answers": list(answers),
        "decision": "ranked",
        "ranks": [*range(1, len(answers) + 1)],
        "text": None,
        **given,
    }
