"""Digests of weights depend on their bytes alone, and changed exports give a warning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raymill.errors import DataError
from raymill.track.marker import MARKER_NAME, is_exported, read_marker, weights_digest, write_marker

LINEAGE = {"checkpoint": "step-00000001", "checkpoint_digest": "c" * 64, "data": ["/data/one"]}


def exported(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir()
    save_file({"a": torch.arange(12.0).to(dtype)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"hidden_size": 12}))
    (folder / "tokenizer.json").write_text("{}")
    write_marker(folder, LINEAGE)
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_marker_vouches_for_every_file_and_for_no_other_bytes(tmp_path: Path) -> None:
    folder = exported(tmp_path / "export")
    marker = read_marker(folder)
    assert sorted(marker.pop("files")) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert marker == LINEAGE
    assert is_exported(folder, LINEAGE)
    assert not is_exported(folder, {**LINEAGE, "checkpoint_digest": "d" * 64})
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        whole = (folder / name).read_bytes()
        flip(folder / name)
        assert not is_exported(folder, LINEAGE), name
        (folder / name).unlink()
        assert not is_exported(folder, LINEAGE), name
        (folder / name).write_bytes(whole)
    assert is_exported(folder, LINEAGE)
    (folder / MARKER_NAME).write_text(json.dumps(LINEAGE))
    assert not is_exported(folder, LINEAGE), "as before markers held digests"


def test_changed_weights_have_another_digest_and_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = exported(tmp_path / "export")
    before = weights_digest(folder)
    assert capsys.readouterr().err == ""
    flip(folder / "tokenizer.json")
    assert weights_digest(folder) == before, "a tokenizer is no weights"
    for name in ("model.safetensors", "config.json"):
        flip(folder / name)
        changed = weights_digest(folder)
        assert changed != before
        assert f"warning: {folder}: {name}" in capsys.readouterr().err
        flip(folder / name)
    assert weights_digest(folder) == before
    (folder / MARKER_NAME).unlink()
    assert weights_digest(folder) == before, "also without a marker, it is of the bytes"
    assert capsys.readouterr().err == ""


def test_exports_of_one_checkpoint_in_two_precisions_differ(tmp_path: Path) -> None:
    one, other = exported(tmp_path / "fp32"), exported(tmp_path / "bf16", torch.bfloat16)
    assert weights_digest(one) != weights_digest(other)


@pytest.mark.parametrize("content", ["{", "[]", '{"files": 3}', "null"])
def test_what_is_no_marker_is_named(tmp_path: Path, content: str) -> None:
    folder = exported(tmp_path / "export")
    (folder / MARKER_NAME).write_text(content)
    with pytest.raises(DataError, match=rf"{MARKER_NAME} isn't"):
        read_marker(folder)
    assert not is_exported(folder, LINEAGE), "so that it is written again"
