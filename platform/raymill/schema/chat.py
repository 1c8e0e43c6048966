"""Configuration of `jobs/chat.py`."""

from __future__ import annotations

from dataclasses import dataclass, field

from raymill.schema.sections import TrackingConfig
from raymill.schema.storage import StorageConfig


@dataclass(frozen=True)
class ChatJob:
    """`jobs/chat.py`: converse with a model, or let it continue a prompt; with `url`, behind an address."""

    model: str
    url: str | None
    # Left out of what is printed.
    api_key: str | None = field(repr=False)
    storage: StorageConfig
    tracking: TrackingConfig
    prompt: str | None
    prompt_file: str | None
    chat: bool | None
    system: str | None
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
