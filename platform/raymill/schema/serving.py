"""`jobs/serve.py`: models to serve, limits, and access."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raymill.schema.sections import ClusterConfig, TrackingConfig
from raymill.schema.storage import StorageConfig


@dataclass(frozen=True)
class ServeConfig:
    """Limits and access of a service. Times are in seconds.

    `slots`: answers that are drawn at the same time, per model. `queue`: answers that wait for a slot;
    `requests`: requests that are open at the same time. The keys from `replicas` on are for `engine="ray"`.
    """

    engine: Literal["local", "ray"]
    decoder: Literal["slots", "vllm"]
    tensor_parallel: int
    slots: int | None
    queue: int
    requests: int
    max_tokens: int | None
    body_bytes: int
    request_s: float
    drain_s: float
    keep_alive_s: float
    write_every_s: float
    keys: str | None
    cors: tuple[str, ...]
    replicas: int
    max_replicas: int | None
    surge: bool
    follow: bool
    follow_every_s: float


@dataclass(frozen=True)
class ServeJob:
    """`jobs/serve.py`: serve models by OpenAI's API.

    `votes`: name of the ranking that the page's votes go to.
    """

    model: tuple[str, ...]
    adapters: dict[str, str]
    host: str
    port: int
    new_key: str | None
    votes: str | None
    dry_run: bool
    serve: ServeConfig
    cluster: ClusterConfig
    tracking: TrackingConfig
    storage: StorageConfig
