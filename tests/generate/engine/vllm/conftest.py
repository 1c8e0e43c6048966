"""One decoder for many tests: vLLM takes seconds to start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from generate.engine.vllm.decoding import adapter_of
from raymill.generate.engine.vllm_engine import VllmDecoder, VllmDecoderSpec
from rl.rollout.tiny import POSITIONS
from rl.rollout.vllm.conftest import pytest_unconfigure  # noqa: F401
from rl.rollout.vllm.models import small_model


@pytest.fixture(scope="session")
def decoded() -> Any:
    """The model that the decoder has."""
    model = small_model()
    # Several blocks of the cache, so that some can be reused.
    model.config.max_position_embeddings = 4 * POSITIONS
    return model


@pytest.fixture(scope="session")
def adapter(decoded: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return adapter_of(small_model(), tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="session")
def spec(decoded: Any, tmp_path_factory: pytest.TempPathFactory) -> VllmDecoderSpec:
    folder = tmp_path_factory.mktemp("decoded")
    decoded.save_pretrained(folder)
    return VllmDecoderSpec(folder, torch.float32, 8, 4 * POSITIONS)


@pytest.fixture(scope="session")
def decoder(spec: VllmDecoderSpec) -> VllmDecoder:
    return spec.build()


@pytest.fixture(scope="session")
def adapted_decoder(spec: VllmDecoderSpec, adapter: Path, decoder: VllmDecoder) -> VllmDecoder:
    """A decoder with an adapter, built after the other, which must stay."""
    return replace(spec, adapters={"terse": adapter}).build()
