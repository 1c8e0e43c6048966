"""Damage in a chunk that one rank reads: both ranks fall back together, to the checkpoint before."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from checkpoint.test_commit import manifest
from engine.probe import join
from engine.ranks import run_ranks
from raymill.checkpoint.commit import commit
from raymill.checkpoint.fence import raise_fence
from raymill.checkpoint.file_record import DamagedError
from raymill.checkpoint.layout import Layout, ParameterEntry, file_of
from raymill.checkpoint.manifest import verify
from raymill.checkpoint.resume import newest_verified
from raymill.errors import CheckpointError, RewindError
from servers import free_port

LAYOUT = Layout.equal_parts(2, {"a": ParameterEntry((200_001,)), "b": ParameterEntry((3, 5))})


def values(step: int, name: str, kind: str) -> np.ndarray:
    rng = np.random.default_rng([step, *name.encode(), *kind.encode()])
    return rng.random(LAYOUT.entries[name].numel, dtype=np.float32)


def resume(rank: int, port: int, folder: Path) -> None:
    """Commit three checkpoints with two ranks, and resume while they are found to be damaged."""
    group = join(rank, 2, port, folder)
    from raymill.checkpoint.fragments import FragmentReader
    from raymill.engine.fall_back import fall_back
    from raymill.engine.group import on_all_ranks, on_rank_zero
    from raymill.engine.start import StartPoint

    checkpoints = folder / "checkpoints"
    on_rank_zero(group, lambda: raise_fence(checkpoints, 0))
    parts = {name: part.range_of(rank) for name, part in LAYOUT.partitions.items()}
    for step in (1, 2, 3):
        fragments = [
            (name, start, {kind: values(step, name, kind)[start : start + numel] for kind in LAYOUT.kinds})
            for name, (start, numel) in parts.items()
        ]  # fmt: skip
        commit(checkpoints, replace(manifest(step), world_size=2), LAYOUT, fragments, group)

    def load(reader: FragmentReader, step: int) -> None:
        for name, (start, numel) in parts.items():
            for kind in LAYOUT.kinds:
                found = reader.read(kind, name, start, numel)
                assert np.array_equal(found, values(step, name, kind)[start : start + numel])

    def attempt(resumed: bool = True) -> str:
        found = on_rank_zero(group, lambda: newest_verified(checkpoints))
        assert found is not None
        try:
            reader = on_all_ranks(group, found.reader)
            on_all_ranks(group, lambda: load(reader, found.manifest.step))
        except DamagedError as error:
            try:
                fall_back(StartPoint(found, resumed=resumed), error, group)
            except (RewindError, CheckpointError) as told:
                return f"{type(told).__name__}: {told}" if told.on_every_rank else "alone"
        return f"step {found.manifest.step}"

    def flip(step: int, file: str) -> None:
        path = checkpoints / f"step-{step:08d}" / file
        data = bytearray(path.read_bytes())
        data[LAYOUT.data_start + 40_000] ^= 1
        path.write_bytes(data)

    outcomes = [attempt()]
    on_rank_zero(group, lambda: flip(3, file_of(1)))
    outcomes += [attempt(resumed=False), attempt(), attempt()]
    on_rank_zero(group, lambda: (checkpoints / "step-00000002" / file_of(0)).unlink())
    outcomes.append(attempt())
    # Nobody sets aside what the look of rank 0 has passed over here; a start of workers does.
    on_rank_zero(group, lambda: flip(1, file_of(0)))
    outcomes.append(attempt())
    (folder / f"outcomes-{rank}.json").write_text(json.dumps(outcomes))
    on_rank_zero(group, lambda: None)
    os._exit(0)


def test_all_ranks_fall_back_together(tmp_path: Path) -> None:
    run_ranks(resume, (free_port(), tmp_path), 2)
    found = [json.loads((tmp_path / f"outcomes-{rank}.json").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]
    whole, fork, fallen, before, older, none = found[0]
    assert whole == "step 3"
    assert fork.startswith("DamagedError: ") and file_of(1) in fork
    assert fallen.startswith("RewindError: passed over a damaged checkpoint: ")
    assert f"step-00000003/{file_of(1)} is damaged: its bytes" in fallen
    assert before == "step 2"
    assert older == "step 1"
    assert none.startswith("CheckpointError: none of the 2 checkpoints")
    assert file_of(0) in none
    checkpoints = tmp_path / "checkpoints"
    [aside] = [path for path in checkpoints.iterdir() if ".damaged-" in path.name]
    assert str(aside) in fallen
    with pytest.raises(CheckpointError, match="is damaged"):
        verify(aside)
    assert (checkpoints / "step-00000001").is_dir(), "the last one is never set aside"
