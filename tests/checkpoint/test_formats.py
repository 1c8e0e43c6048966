"""Checkpoints that were stored when each format was new, by two ranks, are read for good."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from raymill.checkpoint.file_record import DamagedError
from raymill.checkpoint.fragments import FragmentReader, Want
from raymill.checkpoint.manifest import verify
from raymill.checkpoint.resume import newest_verified

STORED = Path(__file__).parents[1] / "stored" / "checkpoints.zip"
SHAPES = {"model.a.weight": (6, 5), "model.b.weight": (7,), "critic/model.b.weight": (7,)}


def values(name: str) -> dict[str, np.ndarray]:
    """The values that were stored, by kind."""
    moments = ("momentum_buffer",) if name == "model.a.weight" else ("exp_avg", "exp_avg_sq")
    first = 100 * (1 + list(SHAPES).index(name))
    base = np.arange(first, first + np.prod(SHAPES[name]), dtype=np.float32)
    return {kind: base + np.float32(n) / 4 for n, kind in enumerate(("fp32", *moments))}


@pytest.fixture(params=[1, 2])
def checkpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with zipfile.ZipFile(STORED) as archive:
        archive.extractall(tmp_path)
    return tmp_path / f"format-{request.param}"


def test_every_element_is_read(checkpoints: Path) -> None:
    found = newest_verified(checkpoints)
    assert found is not None
    assert (found.manifest.step, found.manifest.world_size) == (3, 2)
    assert f"format-{found.manifest.format_version}" == checkpoints.name
    verify(found.directory)
    reader = found.reader()
    assert {name: entry.shape for name, entry in reader.index.items()} == SHAPES
    for name in SHAPES:
        assert (*("fp32",), *reader.index[name].moments) == tuple(values(name))
        for kind, expected in values(name).items():
            assert np.array_equal(reader.read(kind, name), expected)
            # Over the border of the two ranks' parts, and within one.
            assert np.array_equal(reader.read(kind, name, 2, 3), expected[2:5])
    wants = [
        Want(kind, name, np.empty(expected.size, np.float32))
        for name in SHAPES
        for kind, expected in values(name).items()
    ]
    reader.load(wants)
    assert all(np.array_equal(want.out, values(want.name)[want.kind]) for want in wants)


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damage_is_found_by_its_reader(checkpoints: Path, damage: str) -> None:
    directory = checkpoints / "step-00000003"
    path = directory / "rank-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) - 40] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[:-1])
    reader = FragmentReader.open(directory)
    reader.read("fp32", "model.a.weight", 0, 15)
    with pytest.raises(DamagedError, match=r"rank-00001\.safetensors (is|has)"):
        reader.tensor("model.a.weight")
