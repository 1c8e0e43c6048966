"""The arithmetic of where each element lies, compared with files and lists that are written out."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint.test_commit import manifest
from raymill.checkpoint import verified_files
from raymill.checkpoint.chunks import CHUNK_BYTES, ChunkHasher, content_bytes, table_bytes
from raymill.checkpoint.file_record import DamagedError, FileRecord
from raymill.checkpoint.fragments import FragmentReader, write_fragments
from raymill.checkpoint.layout import ADAMW_MOMENTS, Layout, ParameterEntry, Want, file_of
from raymill.checkpoint.manifest import INDEX_NAME, MANIFEST_NAME, CheckpointManifest
from raymill.checkpoint.partition import Partition
from raymill.durable import sha256_file
from raymill.errors import CheckpointError

MOMENTS = ((), ADAMW_MOMENTS, ("momentum_buffer",))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Parameters of any sizes, each cut by itself or with others in one sequence."""
    world = draw(st.integers(1, 9))
    numels = draw(st.lists(st.integers(1, 40), min_size=1, max_size=6))
    entries = [
        ParameterEntry((numel,), draw(st.sampled_from(MOMENTS)), ) for numel in numels
    ]  # fmt: skip
    if draw(st.booleans()):
        return Layout.equal_parts(world, {f"p{n}": entry for n, entry in enumerate(entries)})
    gaps = draw(st.lists(st.integers(0, 5), min_size=len(numels), max_size=len(numels)))
    firsts = np.cumsum([0, *(numel + gap for numel, gap in zip(numels, gaps, strict=True))])
    size = -(-int(firsts[-1]) // world) + draw(st.integers(0, 3))
    return Layout.of(
        world,
        {
            f"p{n}": (entry, Partition(entry.numel, int(first), size))
            for n, (entry, first) in enumerate(zip(entries, firsts, strict=False))
        },
    )


def values_of(layout: Layout) -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        (kind, name): rng.random(entry.numel, dtype=np.float32)
        for name, entry in layout.entries.items()
        for kind in ("fp32", *entry.moments)
    }


def written(folder: Path, layout: Layout) -> CheckpointManifest:
    """Write a checkpoint's files as its ranks do, one after the other; return its manifest."""
    values = values_of(layout)
    files: dict[str, FileRecord] = {}
    for rank in range(layout.world_size):
        fragments = []
        for name, entry in layout.entries.items():
            start, numel = layout.partitions[name].range_of(rank)
            if numel:
                arrays = {
                    kind: values[kind, name][start : start + numel]
                    for kind in ("fp32", *entry.moments)
                }
                fragments.append((name, start, arrays))
        files[file_of(rank)] = write_fragments(folder, rank, layout, fragments)
    index = folder / INDEX_NAME
    index.write_text(json.dumps(layout.to_json()))
    files[INDEX_NAME] = FileRecord(index.stat().st_size, sha256_file(index))
    body = replace(manifest(1), files=files, world_size=layout.world_size)
    (folder / MANIFEST_NAME).write_text(json.dumps(body.to_json()))
    return body


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), data=st.data())
def test_any_ranges_are_read_from_files_of_any_layout(
    tmp_path_factory: pytest.TempPathFactory, layout: Layout, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    found = written(folder, layout)
    layout.check()
    sizes = [(folder / file_of(rank)).stat().st_size for rank in range(layout.world_size)]
    assert layout.file_sizes() == sizes
    assert [found.files[file_of(rank)].bytes for rank in range(layout.world_size)] == sizes
    reader, values = FragmentReader.open(folder), values_of(layout)
    wants = []
    for _ in range(data.draw(st.integers(1, 8))):
        kind, name = data.draw(st.sampled_from(sorted(values)))
        start = data.draw(st.integers(0, layout.entries[name].numel))
        stop = data.draw(st.integers(start, layout.entries[name].numel))
        wants.append(Want(kind, name, np.empty(stop - start, np.float32), start))
    reader.load(wants)
    for want in wants:
        expected = values[want.kind, want.name][want.start : want.stop]
        assert np.array_equal(want.out, expected)
        assert np.array_equal(
            reader.read(want.kind, want.name, want.start, want.out.size), expected
        )
    again = reader.tensors(layout.entries)
    assert all(np.array_equal(again[name], values["fp32", name]) for name in layout.entries)


@settings(max_examples=60, deadline=None)
@given(layout=layouts())
def test_each_element_is_in_one_file_at_the_offset_of_its_header(layout: Layout) -> None:
    """The pieces of every parameter are those that a list of all elements gives."""
    for name, entry in layout.entries.items():
        owners = [
            rank
            for rank in range(layout.world_size)
            for _ in range(layout.partitions[name].range_of(rank)[1])
        ]
        assert len(owners) == entry.numel
        part = layout.partitions[name]
        assert owners == [(part.first + n) // part.size for n in range(entry.numel)]
        out = np.empty(entry.numel, np.float32)
        pieces = list(layout.pieces([Want("fp32", name, out)]))
        assert [file for file, _ in pieces] == [file_of(rank) for rank in sorted(set(owners))]
        for rank, (_, [(offset, memory)]) in zip(sorted(set(owners)), pieces, strict=True):
            before = sum(
                numel
                for kind, other, _, numel in layout.tensors(rank)
                if kind == "fp32" and [*layout.entries].index(other) < [*layout.entries].index(name)
            )
            assert offset == layout.data_start + 4 * before
            assert len(memory) == 4 * owners.count(rank)


@pytest.mark.parametrize("world", [1, 2, 3, 64, 1000])
def test_equal_parts_are_those_of_zero_3(world: int) -> None:
    """ZeRO-3 pads each parameter to a multiple of the ranks, and each has an equal part of that."""
    for numel in (1, 2, 63, 64, 65, 4096, 100_003):
        layout = Layout.equal_parts(world, {"a": ParameterEntry((numel,))})
        padded = -(-numel // world) * world
        bounds = [min(numel, rank * (padded // world)) for rank in range(world + 1)]
        assert [layout.partitions["a"].range_of(rank)[1] for rank in range(world)] == np.diff(
            bounds
        ).tolist()
        layout.check()


def test_the_index_does_not_grow_with_the_ranks_and_survives_json() -> None:
    entries = {f"layers.{n}.weight": ParameterEntry((4096, 4096)) for n in range(100)}
    small, large = (Layout.equal_parts(world, entries) for world in (8, 8192))
    sizes = [len(json.dumps(layout.to_json())) for layout in (small, large)]
    assert abs(sizes[0] - sizes[1]) < 1000
    assert Layout.from_json(json.loads(json.dumps(large.to_json()))) == large
    assert small.data_start == large.data_start


@pytest.mark.parametrize(
    "part", [Partition(5, 0, 2), Partition(5, -1, 5), Partition(4, 0, 5), Partition(5, 9, 5)]
)
def test_elements_that_no_rank_has_are_refused(part: Partition) -> None:
    entry = ParameterEntry((5,))
    Layout.of(2, {"b": (entry, Partition(5, 5, 5))}).check()
    with pytest.raises(CheckpointError, match="parameter b"):
        Layout.of(2, {"b": (entry, part)}).check()


@given(sizes=st.lists(st.integers(0, 50)), chunk=st.integers(1, 40))
def test_chunks_are_digests_of_the_whole_stream_however_it_is_cut(
    sizes: list[int], chunk: int
) -> None:
    hasher, whole = ChunkHasher(chunk), ChunkHasher(chunk)
    parts = [bytes([n % 251] * size) for n, size in enumerate(sizes)]
    for part in parts:
        hasher.update(memoryview(part))
    whole.update(memoryview(b"".join(parts)))
    table = hasher.table()
    assert table == whole.table()
    assert len(table) == table_bytes(sum(sizes), chunk)
    assert content_bytes(sum(sizes) + len(table), chunk) == sum(sizes)


def test_a_flipped_bit_harms_only_those_who_read_its_chunk(tmp_path: Path) -> None:
    entries = {name: ParameterEntry((CHUNK_BYTES,), ()) for name in "abc"}
    layout = Layout.equal_parts(1, entries)
    written(tmp_path, layout)
    path = tmp_path / file_of(0)
    data = bytearray(path.read_bytes())
    data[layout.data_start + 4 * CHUNK_BYTES + 3] ^= 1
    path.write_bytes(data)
    reader, values = FragmentReader.open(tmp_path), values_of(layout)
    assert np.array_equal(reader.tensor("c"), values["fp32", "c"])
    assert np.array_equal(
        reader.read("fp32", "b", CHUNK_BYTES // 2), values["fp32", "b"][CHUNK_BYTES // 2 :]
    )
    with pytest.raises(
        DamagedError, match=r"rank-00000\.safetensors is damaged: its bytes"
    ) as error:
        reader.read("fp32", "b", 0, 1)
    assert error.value.location == str(tmp_path)


@pytest.mark.parametrize("damage", ["table", "truncated", "missing", "other"])
def test_a_file_that_is_not_as_committed_is_named(tmp_path: Path, damage: str) -> None:
    written(tmp_path, Layout.equal_parts(2, {"a": ParameterEntry((9,))}))
    path = tmp_path / file_of(1)
    data = path.read_bytes()
    if damage == "table":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "truncated":
        path.write_bytes(data[:-1])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes((tmp_path / file_of(0)).read_bytes())
    reader = FragmentReader.open(tmp_path)
    reader.read("fp32", "a", 0, 5)
    with pytest.raises(DamagedError, match=r"rank-00001\.safetensors (is|has)"):
        reader.read("fp32", "a")


def test_neighbors_are_read_at_once_and_each_chunk_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"p{n:03d}" for n in range(200)]
    layout = Layout.equal_parts(2, {name: ParameterEntry((8192,)) for name in names})
    written(tmp_path, layout)
    reads: list[tuple[str, int, int]] = []
    read_range = verified_files.read_range

    def counted(path: Path, offset: int, buffer: memoryview) -> int:
        reads.append((path.name, offset, len(buffer)))
        return read_range(path, offset, buffer)

    reader = FragmentReader.open(tmp_path)
    monkeypatch.setattr(verified_files, "read_range", counted)
    reader.load(
        [Want(kind, name, np.empty(8192, np.float32)) for kind in layout.kinds for name in names]
    )
    data = 200 * 3 * 8192 * 4
    files = [(name, size) for name, _, size in reads if name != INDEX_NAME]
    # A table and, in pieces of 8 MiB, the data, of each of the two files.
    assert len(files) == 2 * (1 + -(-data // 2 // verified_files.READ_BYTES))
    assert data <= sum(size for _, size in files) <= data * 1.01
    reads.clear()
    reader.load(
        [
            Want("exp_avg", names[0], np.empty(8, np.float32)),
            Want("exp_avg", names[-1], np.empty(8, np.float32), 8184),
        ]
    )
    assert [size for _, _, size in reads] == [CHUNK_BYTES, CHUNK_BYTES], "nothing between them"


def test_a_file_can_be_read_without_raymill(tmp_path: Path) -> None:
    """The recipe of docs/checkpoints.md: header and data of a safetensors file, by struct and json."""
    layout = Layout.equal_parts(2, {"a": ParameterEntry((9,)), "b": ParameterEntry((4,))})
    written(tmp_path, layout)
    index = json.loads((tmp_path / "index.json").read_text())
    values = values_of(layout)
    for rank in range(index["world_size"]):
        data = (tmp_path / index["file"].format(rank=rank)).read_bytes()
        offset = index["data_start"]
        assert 8 + struct.unpack("<Q", data[:8])[0] == offset
        for kind in index["kinds"]:
            for p in index["parameters"]:
                numel = int(np.prod(p["shape"]))
                low, high = (
                    min(max(0, r * p["part"] - p["first"]), numel) for r in (rank, rank + 1)
                )
                if high > low and kind in ("fp32", *p["moments"]):
                    part = np.frombuffer(data, np.float32, high - low, offset)
                    assert np.array_equal(part, values[kind, p["name"]][low:high])
                    offset += part.nbytes


def test_the_recipe_of_the_documentation_verifies_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    recipe = text.split("```python\n")[1].split("```")[0]
    written(tmp_path, Layout.equal_parts(1, {"a": ParameterEntry((CHUNK_BYTES,))}))
    monkeypatch.chdir(tmp_path)
    exec(recipe, {})
    path = tmp_path / file_of(0)
    data = path.read_bytes()
    path.write_bytes(data[:9999] + bytes([data[9999] ^ 1]) + data[10_000:])
    with pytest.raises(AssertionError):
        exec(recipe, {})
