"""Samples/s and CPU per sample of the training stream, over mosaicml-streaming and a torch DataLoader.

    .venv/bin/python bench/corpus/sample_stream.py --peers PEERS/bin/python [--rows 65536]

PEERS is an environment with torch, psutil and `mosaicml-streaming`; torchvision, for images, may be missing.
All sides give shuffled batches of the same rows of 1,025 tokens as arrays to one process, and read with one
other: Raymill's stream through Ray Data, a StreamingDataset over local MDS shards without compression (shuffle
"py1s"), and a DataLoader of a map-style dataset over a memory-mapped array. Only Raymill's side verifies and
decompresses what it reads. Starts aren't measured; CPU seconds are those of all processes of a side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[2]
LENGTH, GROUP, WINDOW, BATCH, SHARDS = 1024, 64, 16, 32, 4
SIDES = ("raymill", "streaming", "loader")
# Share of the rows before the measurement begins.
WARM_UP = 4


def measured(batches: Iterator[Any], rows: int) -> dict[str, float]:
    """Count rows per second and CPU seconds, of all processes, after the first rows."""
    seen = 0
    for batch in batches:
        seen += len(batch)
        if seen >= rows // WARM_UP:
            break
    cpu, started, counted = cpu_of_tree(), time.perf_counter(), 0
    for batch in batches:
        counted += len(batch)
        if seen + counted >= rows - BATCH:
            # The processes still run, so that their time is known.
            break
    seconds = time.perf_counter() - started
    return {"rows_per_s": counted / seconds, "cpu_us": (cpu_of_tree() - cpu) / counted * 1e6}


def cpu_of_tree() -> float:
    total = 0.0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


def by_raymill(folder: Path, rows: int) -> dict[str, float]:
    sys.path.insert(0, str(ROOT / "platform"))
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["PYTHONPATH"] = str(ROOT / "platform")
    import ray

    from raymill.data.store.blocks import SourceShape
    from raymill.data.store.manifest import load_prepared
    from raymill.data.store.order import Order
    from raymill.data.store.stream import RankStream, StreamSpec

    prepared = load_prepared(folder / "prepared")
    shards = prepared.manifest.splits["train"].shards.column("rows")
    order = Order([SourceShape("bench", 1.0, GROUP, shards)], 1, WINDOW, BATCH)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    spec = StreamSpec((prepared.folder,), order, 1, 0, rows)
    try:
        return measured((batch.rows for batch in RankStream(spec, 0)), rows)
    finally:
        ray.shutdown()


def by_streaming(folder: Path, rows: int) -> dict[str, float]:
    _without_torchvision()
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    tokens = np.load(folder / "rows.npy", mmap_mode="r")
    columns = {"tokens": f"ndarray:uint16:{LENGTH + 1}"}
    with MDSWriter(out=str(folder / "mds"), columns=columns) as writer:
        for row in tokens:
            writer.write({"tokens": np.asarray(row)})
    data = StreamingDataset(
        local=str(folder / "mds"),
        shuffle=True,
        shuffle_algo="py1s",
        batch_size=BATCH,
        num_canonical_nodes=1,
    )
    loader = DataLoader(data, batch_size=BATCH, num_workers=1, prefetch_factor=4)
    return measured((batch["tokens"] for batch in loader), rows)


def by_loader(folder: Path, rows: int) -> dict[str, float]:
    import torch

    class Mapped(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.tokens = np.load(folder / "rows.npy", mmap_mode="r")

        def __len__(self) -> int:
            return len(self.tokens)

        def __getitem__(self, index: int) -> Any:
            return torch.from_numpy(np.array(self.tokens[index]))

    loader = torch.utils.data.DataLoader(
        Mapped(), batch_size=BATCH, shuffle=True, num_workers=1, prefetch_factor=4
    )
    return measured(iter(loader), rows)


def _without_torchvision() -> None:
    """Put an empty module in its place where it is missing: streaming imports it for images only."""
    names = {
        "torchvision": {}, "torchvision.datasets": {"VisionDataset": object}, "torchvision.transforms": {},
        "torchvision.transforms.functional": {"to_tensor": None},
    }  # fmt: skip
    for name, contents in names.items():
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(contents)
        sys.modules.setdefault(name, module)


def write_rows(folder: Path, rows: int) -> None:
    """Write the rows as a prepared folder and as an array."""
    sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]
    from data.prepared_factory import write_prepared
    from raymill.data.store.shards import row_groups

    shape = (rows // SHARDS,) * SHARDS
    prepared = write_prepared(
        folder / "prepared", sequence_length=LENGTH, row_group_rows=GROUP, shard_rows=shape,
        vocab_size=50_000,
    )  # fmt: skip
    tokens = np.lib.format.open_memmap(
        folder / "rows.npy", mode="w+", dtype=np.uint16, shape=(rows, LENGTH + 1)
    )
    start = 0
    for shard in prepared.manifest.splits["train"].shards:
        for group in row_groups(prepared.shard_path(shard), shard, "uint16"):
            tokens[start : start + len(group)] = group.tokens
            start += len(group)
    tokens.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", help="Python of the peers' environment")
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--side", choices=SIDES, help="one side, in this process")
    parser.add_argument("folder", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.side is not None:
        side = {"raymill": by_raymill, "streaming": by_streaming, "loader": by_loader}
        print(json.dumps(side[arguments.side](arguments.folder, arguments.rows)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_rows(Path(name), arguments.rows)
        found = {}
        for side in SIDES:
            python = sys.executable if side == "raymill" else arguments.peers
            command = [python, __file__, "--side", side, "--rows", str(arguments.rows), name]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[side] = json.loads(ended.stdout.splitlines()[-1])
    print(f"{arguments.rows:,} rows of {LENGTH + 1:,} tokens, batches of {BATCH}")
    for side, values in found.items():
        faster = found["raymill"]["rows_per_s"] / values["rows_per_s"]
        cheaper = values["cpu_us"] / found["raymill"]["cpu_us"]
        print(
            f"  {side:<10}{values['rows_per_s']:10,.0f} rows/s, {values['cpu_us']:6.0f} µs of CPU a row"
            + ("" if side == "raymill" else f"; Raymill over it: {faster:.2f} and {cheaper:.2f}")
        )


if __name__ == "__main__":
    main()
