"""Checks of jobs/serve.py: who may reach it, and its limits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from raymill.config.ranges import above, at_least, safe_name
from raymill.schema.serving import ServeJob

LOCAL = ("127.0.0.1", "localhost", "::1")
# Environment variable with API keys, separated by commas.
KEYS_VARIABLE = "RAYMILL_API_KEYS"
_ORIGIN = re.compile(r"https?://[^/\s*]+|\*")


def serving(job: ServeJob) -> Iterator[str]:
    """Check jobs/serve.py, apart from its tracking."""
    if not job.model:
        yield "model: name at least one to serve"
    if not 0 <= job.port < 65536:
        yield f"port={job.port}: must be from 0 to 65535"
    if job.adapters and len(job.model) > 1:
        yield "adapters: they belong to one model; serve it alone, or leave them out"
    for name in job.adapters:
        yield from safe_name("adapters", name)
    yield from safe_name("new_key", job.new_key)
    yield from safe_name("votes", job.votes)
    yield from _limits(job)
    yield from _access(job)
    yield from _replicas(job)


def _limits(job: ServeJob) -> Iterator[str]:
    settings = job.serve
    for key in ("slots", "requests", "max_tokens", "tensor_parallel"):
        yield from at_least(f"serve.{key}", getattr(settings, key), 1)
    yield from at_least("serve.body_bytes", settings.body_bytes, 1024)
    for key in ("queue", "drain_s", "write_every_s"):
        yield from at_least(f"serve.{key}", getattr(settings, key), 0)
    for key in ("request_s", "keep_alive_s"):
        yield from above(f"serve.{key}", getattr(settings, key), 0)


def _replicas(job: ServeJob) -> Iterator[str]:
    settings = job.serve
    yield from at_least("serve.replicas", settings.replicas, 1)
    yield from above("serve.follow_every_s", settings.follow_every_s, 0)
    if settings.decoder == "slots" and settings.tensor_parallel > 1:
        yield f"serve.tensor_parallel={settings.tensor_parallel}: only serve.decoder=vllm shares a model"
    if settings.decoder == "vllm" and settings.slots is None:
        yield "serve.decoder=vllm: set serve.slots, from which vLLM's memory is computed"
    if settings.engine == "local":
        for key, value in (("replicas", settings.replicas > 1), ("follow", settings.follow)):
            if value:
                yield f"serve.{key}: one process has none; use serve.engine=ray"
        if settings.max_replicas is not None:
            yield "serve.max_replicas: one process has none; use serve.engine=ray"
        return
    if job.port == 0:
        yield "port=0: Ray Serve takes a fixed port; give one"
    if settings.max_replicas is not None:
        yield from at_least("serve.max_replicas", settings.max_replicas, settings.replicas)
        if settings.slots is None:
            yield "serve.max_replicas: set serve.slots, the requests for which one replica is enough"


def _access(job: ServeJob) -> Iterator[str]:
    keys, new = job.serve.keys, job.new_key
    if new is not None and keys is None:
        yield f"new_key={new}: needs serve.keys, the file to add the key to"
    has_keys = keys is not None or bool(os.environ.get(KEYS_VARIABLE))
    if job.host not in LOCAL and not has_keys:
        yield (
            f"host={job.host}: everybody who reaches this machine could use the model; set serve.keys to a "
            f"file of API keys (new_key=name adds one) or {KEYS_VARIABLE}, or leave host at 127.0.0.1"
        )
    for origin in job.serve.cors:
        if not _ORIGIN.fullmatch(origin):
            yield f"serve.cors={origin}: expected an origin such as https://chat.example.org"
        if origin == "*" and not has_keys:
            yield (
                "serve.cors=*: every site could use the model through this machine's browsers; set "
                "serve.keys, or name the sites"
            )
