"""Exported folders: their files' modes, and their agreement with the trained model."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

from data.prepared_factory import write_prepared
from raymill.checkpoint.fragments import FragmentReader, merge_slices, write_fragments
from raymill.config import load
from raymill.data.text.control_tokens import ControlTokens
from raymill.errors import CheckpointError
from raymill.model.build import build_model
from raymill.model.export import export_folder, replaced_folder
from raymill.model.finetuned import save_finetuned
from raymill.model.parent import load_parent, with_adapters
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


def checkpointed(model: Any, folder: Path) -> FragmentReader:
    """Commit a checkpoint of the model."""
    values = {name: p.detach().numpy().ravel() for name, p in model.named_parameters()}
    fragments = [(name, 0, {"fp32": array}) for name, array in values.items()]
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    folder.mkdir()
    slices, _, _ = write_fragments(folder, "rank-0.safetensors", fragments)
    return FragmentReader(folder, merge_slices(shapes, [slices]))


def test_exported_weights_follow_the_umask(mode: int, tmp_path: Path) -> None:
    arch = load("pretrain", list(TINY)).arch
    model = build_model(arch, VOCAB, 0, 1)
    reader = checkpointed(model, tmp_path / "checkpoint")
    tokenizer = write_prepared(tmp_path / "data").tokenizer_folder
    tokens = ControlTokens(0, 0, (0,))
    export = export_folder(reader, arch, VOCAB, tokens, tokenizer, tmp_path / "export", "fp32")
    found = modes(export)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= found.keys()
    assert set(found.values()) == {mode}, found
    again = AutoModelForCausalLM.from_pretrained(export).state_dict()
    for name, parameter in model.named_parameters():
        assert np.array_equal(again[name].numpy(), parameter.detach().numpy()), name


def test_a_base_models_export_is_compared_and_keeps_its_parents_settings(tmp_path: Path) -> None:
    arch = load("pretrain", list(TINY)).arch
    model = build_model(arch, VOCAB, 0, 1)
    reader = checkpointed(model, tmp_path / "checkpoint")
    prepared = write_prepared(tmp_path / "data")
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "config.json").write_text("{}")
    settings = {"eos_token_id": [0, 7], "temperature": 0.6, "top_p": 0.9}
    (parent / "generation_config.json").write_text(json.dumps(settings))

    def export(trained: Any) -> Path:
        return export_folder(
            reader, arch, VOCAB, ControlTokens.from_prepared(prepared, parent), prepared.tokenizer_folder,
            tmp_path / "export", "fp32", parent=parent, trained=lambda: trained,
            probe_ids=[[0, 5, 6, 7], [0, 9]],
        )  # fmt: skip

    found = json.loads((export(model) / "generation_config.json").read_text())
    assert found == settings | {"bos_token_id": 0, "pad_token_id": 0}
    compared = json.loads((tmp_path / "export" / "saved.json").read_text())
    assert 0 <= compared["logit_difference"] < 1e-5
    with pytest.raises(CheckpointError, match="nothing was exported"):
        export(build_model(arch, VOCAB, 0, 2))
    assert json.loads((tmp_path / "export" / "saved.json").read_text()) == compared


def test_fine_tuned_weights_and_adapters_follow_the_umask(mode: int, tmp_path: Path) -> None:
    arch = load("pretrain", list(TINY)).arch
    build_model(arch, VOCAB, 0, 1).save_pretrained(tmp_path / "parent")
    model = with_adapters(
        load_parent(tmp_path / "parent", VOCAB, [], "sdpa", 7), plain(LoraConfig, rank=2), [], 7
    )
    tokenizer = write_prepared(tmp_path / "data").tokenizer_folder
    save_finetuned(
        model, tokenizer, tmp_path / "export", precision="fp32",
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
