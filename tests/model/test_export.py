"""Exported folders: their files' modes, and their agreement with the trained model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from data.prepared_factory import write_prepared
from model.families import build
from raymill.config import load
from raymill.data.text.control_tokens import ControlTokens
from raymill.durable import sha256_file
from raymill.errors import CheckpointError
from raymill.model.build import build_model
from raymill.model.export import SavedModel, replaced_folder, save_model
from raymill.model.lazy import LazyModel
from raymill.model.parent import plan_parent, with_adapters
from raymill.model.saved_tensors import SavedTensors
from raymill.model.weight_files import TensorForm, write_weights
from raymill.schema.sections import LoraConfig
from sections import plain

TINY = (
    "arch.layers=1", "arch.hidden_size=32", "arch.heads=2", "arch.kv_heads=2", "arch.head_dim=16",
    "arch.intermediate_size=64",
)  # fmt: skip
VOCAB = 300


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=["022", "027", "077"])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """Return the mode of files under the umask that is set for the test."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_exported_weights_follow_the_umask(mode: int, tmp_path: Path) -> None:
    arch = load("pretrain", list(TINY)).arch
    model = build_model(arch, VOCAB, 0, 1)
    tokenizer = write_prepared(tmp_path / "data").tokenizer_folder
    export = tmp_path / "export"
    save_model(
        LazyModel(model), tokenizer, export, precision="fp32",
        tokens=ControlTokens(0, 0, (0,)), probe_ids=[[0, 5]],
    )  # fmt: skip
    found = modes(export)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= found.keys()
    assert set(found.values()) == {mode}, found
    again = AutoModelForCausalLM.from_pretrained(export).state_dict()
    for name, parameter in model.named_parameters():
        assert np.array_equal(again[name].numpy(), parameter.detach().numpy()), name


def lazy(model: Any) -> LazyModel:
    """Return the model with parameters that are read when they are needed."""
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return LazyModel(model, {name: lambda name=name: values[name] for name in values})


def test_a_base_models_export_is_compared_and_keeps_its_parents_settings(tmp_path: Path) -> None:
    arch = load("pretrain", list(TINY)).arch
    model = build_model(arch, VOCAB, 0, 1)
    prepared = write_prepared(tmp_path / "data")
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "config.json").write_text("{}")
    settings = {"eos_token_id": [0, 7], "temperature": 0.6, "top_p": 0.9}
    (parent / "generation_config.json").write_text(json.dumps(settings))

    def export(trained: LazyModel) -> SavedModel:
        return save_model(
            trained, prepared.tokenizer_folder, tmp_path / "export", precision="fp32",
            tokens=ControlTokens.from_prepared(prepared, parent), probe_ids=[[0, 5, 6, 7], [0, 9]],
            parent=parent,
        )  # fmt: skip

    saved = export(lazy(model))
    assert saved.digests == {
        "model.safetensors": sha256_file(tmp_path / "export" / "model.safetensors")
    }
    found = json.loads((tmp_path / "export" / "generation_config.json").read_text())
    assert found == settings | {"bos_token_id": 0, "pad_token_id": 0}
    compared = json.loads((tmp_path / "export" / "saved.json").read_text())
    assert 0 <= compared["logit_difference"] < 1e-5
    # Weights that are others when they are written than when the trained model computed.
    times = count()
    changing = LazyModel(
        build_model(arch, VOCAB, 0, 1), {"model.norm.weight": lambda: torch.ones(32) + next(times)}
    )
    with pytest.raises(CheckpointError, match="nothing was exported"):
        export(changing)
    assert json.loads((tmp_path / "export" / "saved.json").read_text()) == compared


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_folder_in_several_files_is_what_transformers_would_save(
    family: str, precision: str, tmp_path: Path
) -> None:
    """Experts are converted to the tensors of published models."""
    whole = build(family)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    copy = build(family).to(dtype)
    copy.save_pretrained(tmp_path / "theirs")
    tensors = SavedTensors(lazy(whole), precision)
    (tmp_path / "ours").mkdir()
    digests = write_weights(tmp_path / "ours", tensors.forms, tensors.tensor, 20_000)
    assert len(digests) > 2
    for file, digest in digests.items():
        assert sha256_file(tmp_path / "ours" / file) == digest
        if len(load_file(tmp_path / "ours" / file)) > 1:
            assert (tmp_path / "ours" / file).stat().st_size < 30_000
    index = json.loads((tmp_path / "ours" / "model.safetensors.index.json").read_text())
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = {
        name: load_file(tmp_path / "ours" / file)[name]
        for name, file in index["weight_map"].items()
    }
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    copy.config.save_pretrained(tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=dtype).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in copy.state_dict().items())


def test_a_file_with_other_bytes_than_were_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = {"a": TensorForm((4,), torch.float32), "b": TensorForm((2, 2), torch.float32)}

    def tensor(name: str) -> torch.Tensor:
        return torch.ones(forms[name].shape)

    write_weights(tmp_path, forms, tensor)
    written = safetensors.safe_open

    class Torn:
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            self._file = written(*arguments, **settings)

        def __enter__(self) -> Torn:
            return self

        def __exit__(self, *_: object) -> None: ...

        def get_tensor(self, name: str) -> torch.Tensor:
            return self._file.get_tensor(name) + (name == "b")

    monkeypatch.setattr(safetensors, "safe_open", Torn)
    with pytest.raises(CheckpointError, match="b is read back with other values"):
        write_weights(tmp_path, forms, tensor)


def test_fine_tuned_weights_and_adapters_follow_the_umask(mode: int, tmp_path: Path) -> None:
    arch = load("pretrain", list(TINY)).arch
    build_model(arch, VOCAB, 0, 1).save_pretrained(tmp_path / "parent")
    model = with_adapters(
        plan_parent(tmp_path / "parent", VOCAB, [], "sdpa", 7), plain(LoraConfig, rank=2), [], 7
    ).whole()
    tokenizer = write_prepared(tmp_path / "data").tokenizer_folder
    save_model(
        LazyModel(model), tokenizer, tmp_path / "export", precision="fp32",
        tokens=ControlTokens(0, 0, (0,)), probe_ids=[[1, 2, 3]],
    )  # fmt: skip
    for folder, weights in (("export", "model"), ("adapter", "adapter_model")):
        found = modes(tmp_path / folder)
        assert f"{weights}.safetensors" in found
        assert set(found.values()) == {mode}, found


def test_folders_within_follow_it_too_and_nothing_is_left_over(mode: int, tmp_path: Path) -> None:
    with replaced_folder(tmp_path / "target") as temporary:
        (temporary / "inner").mkdir()
        descriptor = os.open(temporary / "inner" / "secret", os.O_CREAT | os.O_WRONLY, 0o600)
        os.close(descriptor)
    assert modes(tmp_path / "target" / "inner") == {"secret": mode}
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["inner"]
