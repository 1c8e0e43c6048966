"""One engine for many tests: vLLM takes seconds to start."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest

from raymill.rl.rollout.vllm_engine import VllmEngine, VllmSpec
from rl.rollout.vllm.models import load_weights, small_model, spec_of


def pytest_unconfigure() -> None:
    """Let the process end: at its exit vLLM collects garbage once per engine, which can take minutes."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]
        found = finalizer.peek()
        if found is not None and str(getattr(found[1], "__module__", "")).startswith("vllm"):
            finalizer.atexit = False


@pytest.fixture(scope="session")
def build() -> Callable[[VllmSpec], VllmEngine]:
    """Engines stay until the end: one that goes takes the process groups of the others with it."""
    built: list[VllmEngine] = []

    def build(spec: VllmSpec) -> VllmEngine:
        built.append(spec.build())
        return built[-1]

    return build


@pytest.fixture(scope="session")
def model() -> Any:
    return small_model()


@pytest.fixture(scope="session")
def started(
    model: Any,
    build: Callable[[VllmSpec], VllmEngine],
    tmp_path_factory: pytest.TempPathFactory,
) -> VllmEngine:
    return build(spec_of(model, tmp_path_factory.mktemp("model")))


@pytest.fixture
def engine(started: VllmEngine, model: Any) -> VllmEngine:
    """Engine with `model`'s weights."""
    load_weights(started, model)
    return started
