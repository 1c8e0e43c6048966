"""One engine for many tests: vLLM takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from raymill.rollout.vllm_engine import VllmEngine
from rollout.vllm.models import bring, small_model, spec_of


@pytest.fixture(scope="session")
def model() -> Any:
    return small_model()


@pytest.fixture(scope="session")
def started(model: Any, tmp_path_factory: pytest.TempPathFactory) -> VllmEngine:
    return spec_of(model, tmp_path_factory.mktemp("model")).build()


@pytest.fixture
def engine(started: VllmEngine, model: Any) -> Iterator[VllmEngine]:
    """It has `model`'s weights."""
    bring(started, model)
    return started
