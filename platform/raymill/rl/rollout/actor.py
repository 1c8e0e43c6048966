"""What runs in an actor's process: an engine, and the version of its weights."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raymill.generate.batch import Completion
from raymill.rl.rollout.batches import Unit
from raymill.rl.rollout.engine import EngineSpec, RolloutEngine, Sampling
from raymill.rl.rollout.failure import RolloutError


@dataclass(frozen=True)
class Place:
    """Where an actor runs."""

    actor_id: str
    node_id: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"{self.host} (node {self.node_id[:12]}, pid {self.pid})"


class EngineActor:
    """Nothing is built before `start`, whose errors then arrive as they are."""

    def __init__(self, spec: EngineSpec, timeout_s: float) -> None:
        self._spec = spec
        self._timeout_s = timeout_s
        self._engine: RolloutEngine | None = None
        self._version: int | None = None

    def start(self) -> Place:
        """Build the engine."""
        import ray

        self._engine = self._spec.build()
        context = ray.get_runtime_context()
        node_id: str = context.get_node_id()
        return Place(context.get_actor_id() or "", node_id, socket.gethostname(), os.getpid())

    def load(self, refs: Sequence[Any], version: int) -> str:
        """Take over weights that lie in the object store, a bucket at a time; returns their digest."""
        import ray

        engine = self._started()
        self._version = None  # until all of them are there
        engine.load(ray.get(ref, timeout=self._timeout_s) for ref in refs)
        self._version = version
        return engine.digest()

    def generate(self, unit: Unit, sampling: Sampling, version: int) -> tuple[Completion, ...]:
        """Sample a unit with weights of that version and no other."""
        if self._version != version:
            raise RolloutError(
                f"weights of version {version} were to sample, the actor has {self._version}"
            )
        return tuple(self._started().generate(unit.prompts, sampling, unit.seeds))

    def _started(self) -> RolloutEngine:
        if self._engine is None:
            raise RolloutError("the actor hasn't been started")
        return self._engine


class SamplingActor(EngineActor):
    """By this name Ray's tools show it."""


class RewardActor(EngineActor):
    """A reward model's."""
