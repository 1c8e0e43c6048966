"""Continuing a Hugging Face folder: the same outputs as transformers', or a refusal by name."""

from __future__ import annotations

import ast
import builtins
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

from raymill.errors import ConfigError
from raymill.model.build import build_model, load_pretrained
from raymill.model.shape import own_architecture
from raymill.schema.sections import ArchConfig

LOADS = ("from_pretrained", "from_config")
PACKAGE = Path(__file__).resolve().parents[2] / "platform" / "raymill"

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 60}
LLAMA = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 60}
THETA = {"rope_type": "default", "rope_theta": 5e5}


def saved(config: Any, folder: Path) -> ArchConfig:
    """Save a model of that configuration, and return the architecture read from its folder."""
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return own_architecture(folder)


@pytest.mark.parametrize(
    "config",
    [
        GPT2Config(**GPT2, layer_norm_epsilon=3e-5),
        LlamaConfig(**LLAMA, rms_norm_eps=2e-5, rope_parameters=THETA, tie_word_embeddings=True),
        Qwen3Config(**LLAMA, head_dim=16, rope_parameters=THETA),
    ],
    ids=["gpt2", "llama", "qwen3"],
)
def test_a_folder_is_continued_as_transformers_computes_it(config: Any, tmp_path: Path) -> None:
    arch = saved(config, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours = load_pretrained(tmp_path, arch, 60, 7).eval()
    ids_BT = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(ids_BT).logits, theirs(ids_BT).logits, rtol=0, atol=1e-6)
    # A resumed run builds its model from the architecture alone.
    built = build_model(arch, 60, 7, seed=1)
    assert built.config.to_dict() | {"_name_or_path": ""} == ours.config.to_dict() | {
        "_name_or_path": "",
        "architectures": built.config.architectures,
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (GPT2Config(**GPT2, activation_function="relu"), "its activation_function is relu"),
        (LlamaConfig(**LLAMA, attention_bias=True), "its attention_bias is True"),
        (LlamaConfig(**LLAMA, rope_parameters={**THETA, "rope_type": "linear", "factor": 2.0}),
         "its rope_parameters is"),
    ],
    ids=["activation", "bias", "rope"],
)  # fmt: skip
def test_what_would_compute_something_else_is_refused(
    config: Any, message: str, tmp_path: Path
) -> None:
    arch = saved(config, tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_pretrained(tmp_path, arch, 60, 7)


def test_another_shape_or_vocabulary_is_refused(tmp_path: Path) -> None:
    arch = saved(GPT2Config(**GPT2), tmp_path)
    for vocab_size, message in ((61, "smaller than the data's 61"), (50, "set arch.vocab_size=60")):
        with pytest.raises(ConfigError, match=message):
            load_pretrained(tmp_path, arch, vocab_size, 7)
    with pytest.raises(ConfigError, match=r"arch\.max_positions=32: the model in .* has 64"):
        load_pretrained(tmp_path, replace(arch, max_positions=32), 60, 7)


def test_a_folders_own_code_is_never_run_nor_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = saved(LlamaConfig(**LLAMA), tmp_path)
    asked: list[str] = []
    monkeypatch.setattr(builtins, "input", lambda *text: asked.append(str(text)) or "y")
    (tmp_path / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import LlamaConfig\n"
        "class Own(LlamaConfig):\n    model_type = 'own'\n"
    )
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {
            "model_type": "own", "auto_map": {"AutoConfig": "own.Own"},
        })
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"model=.*: transformers can't load it: .* custom code"):
        load_pretrained(tmp_path, arch, 60, 7)
    assert asked == []
    assert not (tmp_path / "ran").exists()


def test_every_call_that_builds_a_model_refuses_its_code() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in LOADS:
                given = {one.arg: ast.unparse(one.value) for one in node.keywords}
                found.append((path.name, node.lineno, given.get("trust_remote_code")))
    assert len(found) > 8, found
    assert {trusted for _, _, trusted in found} == {"False"}, found
