"""A reward that has nothing to do with the answer: what shuffled rewards are."""

from __future__ import annotations

import hashlib

from raymill.rl.reward.task import Sample


def noise(sample: Sample) -> float:
    """The same for the same answer, and as likely high as low."""
    digest = hashlib.sha256(repr((sample.prompt_messages, sample.answer_ids)).encode()).digest()
    return float(digest[0] % 2)
