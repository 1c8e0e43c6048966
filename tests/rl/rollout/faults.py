"""Engines that fail on order: in the middle of the batch that the order names, once unless it says always."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from raymill.errors import ConfigError
from raymill.generate.batch import Completion
from raymill.rl.rollout.engine import PromptBatch, Sampling
from raymill.rl.rollout.transformers_engine import ModelSpec, TransformersEngine
from raymill.rl.rollout.weights import TensorBucket, weights_digest

PASSES = 3  # forward passes of a batch before its actor fails


def order(orders: Path, batch: PromptBatch, what: str) -> Path:
    """`what`: a signal that the actor sends itself, or "break"."""
    path = orders / str(batch.seeds[0])
    path.write_text(what)
    return path


def ordered(orders: Path, seeds: Sequence[int]) -> str | None:
    path = orders / str(seeds[0])
    if not path.exists():
        return None
    what = path.read_text()
    if "always" not in what:
        path.unlink()
    return what.split()[0]


@dataclass(frozen=True)
class FaultySpec(ModelSpec):
    """`orders`: a folder of files."""

    orders: str = ""

    def build(self) -> TransformersEngine:
        return FaultyEngine(super().build().model, self.threads, Path(self.orders))


class FaultyEngine(TransformersEngine):
    def __init__(self, model: Any, threads: int, orders: Path) -> None:
        super().__init__(model, threads)
        self._orders = orders

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        what, passes = ordered(self._orders, seeds), []

        def hook(*_: Any) -> None:
            passes.append(1)
            if what and len(passes) == PASSES:
                os.kill(os.getpid(), getattr(signal, what))

        with self.model.register_forward_pre_hook(hook):
            return super().generate(prompts, sampling, seeds)


@dataclass(frozen=True)
class ToySpec:
    """An engine that starts soon: its answers are a hash of weights, prompt and seed."""

    orders: Path
    dtype: Literal["fp32", "bf16"] = "fp32"

    def build(self) -> ToyEngine:
        if (self.orders / "build").exists():
            raise ConfigError(["parent: no such model"])
        return ToyEngine(self.orders)


class ToyEngine:
    def __init__(self, orders: Path) -> None:
        self._orders = orders
        self._held: dict[str, torch.Tensor] = {}

    def load(self, buckets: Iterable[TensorBucket]) -> None:
        self._held = {name: tensor for bucket in buckets for name, tensor in bucket.tensors()}
        if (self._orders / "corrupt").exists():
            next(iter(self._held.values())).view(-1)[0] += 1e-3

    def digest(self) -> str:
        return weights_digest(self._held.items())

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        what = ordered(self._orders, seeds)
        if what == "break":
            try:
                raise ZeroDivisionError("in the engine")
            except ZeroDivisionError as error:
                raise RuntimeError("the library's own") from error
        if what:
            os.kill(os.getpid(), getattr(signal, what))
        drawn = [
            hashlib.sha256(f"{self.digest()} {list(prompt)} {seed}".encode()).digest()
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        return [Completion(tuple(some[:5]), "length", (-1.0,) * 5) for some in drawn]
