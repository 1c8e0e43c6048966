"""Reading of 15 trillion tokens: the manifest, and one rank's share of rows, for any number of ranks.

    .venv/bin/python bench/scale/reading.py [--ranks 8 64 1024 8192] [--json figures.json]
    … --before DIR     also measures a checkout of an earlier commit, where it can be run

The corpus is a manifest of 10,000 shards of 1.5 billion tokens each; its row groups are made up at
the moment they are read. All figures but those of bytes are of one rank, whose share is four rows a
step whatever the number of ranks. Each measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Another checkout's package is measured by the same functions.
PACKAGE = Path(os.environ.get("RAYMILL_PACKAGE", ROOT / "platform"))
sys.path[:0] = [str(PACKAGE), str(PACKAGE.parent / "tests")]

import numpy as np
import psutil

SHARDS, INPUTS, LENGTH, GROUP_ROWS = 10_000, 160_000, 4096, 322
SHARD_ROWS = 15 * 10**12 // SHARDS // LENGTH
RANK_ROWS, WINDOW, SEED = 4, 16, 1
WEIGHTS = (0.5, 0.25, 0.15, 0.07, 0.03)
# Several times the steps for which row groups are in use, and the places of sources stay the same.
STEPS, MIXTURE_STEPS = 16 * GROUP_ROWS, 40 * GROUP_ROWS
MIB = 2**20


def cpu_s() -> float:
    return time.process_time()


def memory() -> int:
    return int(psutil.Process().memory_full_info().uss)


def hex_digest(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15 % 2**256:064x}"


def write_corpus(folder: Path, first: bool) -> float:
    """Write the manifest of 15 trillion tokens, in format version 1 if `first`; return CPU-seconds."""
    from data.prepared_factory import write_prepared
    from raymill.data.store import manifest as store

    prepared = write_prepared(folder, sequence_length=LENGTH, vocab_size=100_000, shard_rows=(1,))
    tokens = SHARD_ROWS * LENGTH
    row_groups = -(-SHARD_ROWS // GROUP_ROWS)

    def shard(number: int) -> Any:
        sha256 = hex_digest(number)
        return store.Shard(
            f"train/{number:05d}.parquet", SHARD_ROWS, row_groups, tokens + 1, tokens,
            4 * tokens, 3 * 10**9, sha256, sha256[::-1],
        )  # fmt: skip

    started = cpu_s()
    inputs = [
        store.InputDigest(f"crawl-2026-11/part-{n:06d}.jsonl.zst", 0, 375 * 10**6, hex_digest(n))
        for n in range(INPUTS)
    ]
    shards: Any = map(shard, range(SHARDS))
    train = store.Split.from_shards(tuple(shards) if first else shards)
    store.write_manifest(
        folder,
        replace(
            prepared.manifest, row_group_rows=GROUP_ROWS, inputs=tuple(inputs),
            splits={**prepared.manifest.splits, "train": train},
        ),
    )  # fmt: skip
    return cpu_s() - started


def open_manifest(folder: str) -> dict[str, float]:
    """Open the corpus as a worker does, and derive the order."""
    from raymill.data.store import manifest as store

    before, started, used = memory(), time.perf_counter(), cpu_s()
    # The earlier code would ask for each shard's size, and there are no shards.
    opened = store.load_prepared if store.FORMAT_VERSION > 1 else store.read_manifest
    prepared = opened(Path(folder))
    manifest = getattr(prepared, "manifest", prepared)
    table = manifest.splits["train"].shards
    rows = table.column("rows") if hasattr(table, "column") else [s.rows for s in table]
    assert sum(rows) == SHARDS * SHARD_ROWS, "all shards were read"
    return {
        "open_s": time.perf_counter() - started,
        "open_cpu_s": cpu_s() - used,
        "own_mib": (memory() - before) / MIB,
    }


def order_of(folder: Path, sources: int, global_batch: int) -> Any:
    from raymill.data.store import order as orders
    from raymill.data.store.manifest import read_manifest

    try:
        from raymill.data.store.blocks import SourceShape
    except ImportError:
        SourceShape = orders.SourceShape  # type: ignore[misc, attr-defined]
    table = read_manifest(folder).splits["train"].shards
    rows = table.column("rows") if hasattr(table, "column") else tuple(s.rows for s in table)
    weights = WEIGHTS if sources > 1 else (1.0,)
    shapes = [SourceShape(str(i), w, GROUP_ROWS, rows) for i, w in enumerate(weights)]
    arguments = (shapes, SEED, WINDOW, global_batch)
    return orders.Order(*arguments if hasattr(orders, "SampleOrder") else arguments[:3])


def share(folder: str, ranks: int, sources: int, at: float) -> dict[str, float]:
    """Read one rank's share of many steps from a place of the corpus on."""
    from raymill.data.store import reader as reading
    from raymill.data.store.rows import Rows
    from raymill.data.store.stream import (
        RankStream,
        StreamSpec,
        open_bytes,
        read_unit,
        reading_bytes,
    )

    made = Rows(
        np.zeros((GROUP_ROWS, LENGTH + 1), np.uint32),
        np.full(GROUP_ROWS, LENGTH + 1, np.int32),
        np.zeros(GROUP_ROWS, np.int32),
    )
    read = 0

    def made_up(*_: object) -> Rows:
        nonlocal read
        read += 1
        return made.take(slice(None)).unweighted()

    reading.read_row_group = made_up  # type: ignore[assignment]
    used, began = cpu_s(), memory()
    batch = RANK_ROWS * ranks
    order = order_of(Path(folder), sources, batch)
    first = int(at * 15 * 10**12 / LENGTH) // batch * batch
    spec = StreamSpec(
        (Path(folder),) * sources,
        order,
        ranks,
        first,
        first + (MIXTURE_STEPS if sources > 1 else STEPS) * batch,
    )
    rank = ranks // 3
    reader = reading.RowReader(spec.folders, open_bytes(spec))
    units = range(0, spec.steps, spec.steps_per_unit)
    most = 0.0

    def read_units() -> Any:
        nonlocal most
        for step in units:
            yield read_unit(spec, rank, step, reader)
            most = max(most, reader._bytes)

    class Pipeline:
        def iter_batches(self, **_: object) -> Any:
            return read_units()

    stream = RankStream(spec, rank, lambda *_: Pipeline())  # type: ignore[arg-type, return-value]
    next(stream)
    start_s, started = cpu_s() - used, cpu_s()
    open_groups = read
    # Steps of the first unit are past.
    steps = sum(1 for _ in stream) - spec.steps_per_unit
    # What is still in use at the end is read by the next steps, as what was at the start.
    rows_read = (read - open_groups) * GROUP_ROWS
    return {
        "start_cpu_s": start_s,
        "cpu_ms_a_step": (cpu_s() - started) / steps * 1e3,
        "open_row_groups": open_groups,
        "open_mib": most / MIB,
        "bound_mib": reading_bytes(spec) / MIB,
        "plain_memory_mib": (memory() - began) / MIB,
        "rows_read_per_row": rows_read / (steps * RANK_ROWS),
    }


def share_before(folder: str, ranks: int) -> dict[str, float]:
    """Locate a unit of one rank as the earlier code did, in a task and again in the rank."""
    from raymill.data.store.stream import StreamSpec

    used = cpu_s()
    batch = RANK_ROWS * ranks
    order = order_of(Path(folder), 1, batch)
    spec = StreamSpec((Path(folder),), order, batch, ranks, 0, STEPS * batch)  # type: ignore[call-arg]
    spec.rank_samples(0, 1, 0)
    start_s, used, steps = cpu_s() - used, cpu_s(), 4
    spec.rank_samples(0, steps, ranks // 3)
    return {"start_cpu_s": start_s, "cpu_ms_a_step": 2 * (cpu_s() - used) / steps * 1e3}


def real_bytes() -> dict[str, float]:
    """Count the bytes that one of two ranks reads of a small corpus, per byte that it uses.

    Shards are a hundred times smaller than in a large corpus, and row groups ten times.
    """
    from data.prepared_factory import write_prepared
    from raymill.data.store import shards
    from raymill.data.store.blocks import SourceShape
    from raymill.data.store.order import Order
    from raymill.data.store.pack import row_group_rows
    from raymill.data.store.reader import RowReader

    counts = {"pages": 0, "footers": 0}
    footer, table = shards.read_footer, shards._read_table

    def counted_footer(path: Path) -> bytes:
        content = footer(path)
        counts["footers"] += len(content)
        return content

    def counted_table(path: Path, parsed: Any, group: int) -> Any:
        described = parsed.parquet.row_group(group)
        counts["pages"] += sum(
            described.column(i).total_compressed_size for i in range(described.num_columns)
        )
        return table(path, parsed, group)

    rows, batch, ranks = 40_000, 8, 2
    group = row_group_rows(257 * 4, rows * 257 * 4, 10**13)
    # The lower bound of 1 MiB is for requests to storage, not for footers.
    group = min(group, int((7000 * rows * 257 * 4) ** 0.5) // (257 * 4))
    with tempfile.TemporaryDirectory() as name:
        prepared = write_prepared(
            Path(name), sequence_length=256, row_group_rows=group, vocab_size=100_000,
            shard_rows=(rows,) * 2,
        )  # fmt: skip
        stored = sum(shard.file_bytes for shard in prepared.manifest.splits["train"].shards)
        shards.read_footer, shards._read_table = counted_footer, counted_table
        # As in a large corpus, the next row group is in a shard whose footer isn't known any more.
        shards.FOOTERS_BYTES = 0
        order = Order([SourceShape("", 1.0, group, (rows,) * 2)], SEED, batch, batch)
        reader = RowReader((Path(name),))
        used, marks = 0, []
        steps = range(0, 9 * group, group // 8)
        for step in steps:
            # Until then, row groups are read that give rows to later steps.
            if step in (steps[8], steps[-1]):
                marks.append((used, counts["pages"], counts["footers"]))
            _, located = order.rank_rows(step * batch, group // 8, 1, ranks)
            used += len(reader.read(located).length)
    own, pages, footers = (after - before for before, after in zip(*marks, strict=True))
    own_bytes = own * stored / (2 * rows)
    return {
        "row_group_kib": group * 257 * 4 / 1024,
        "pages_per_byte": pages / own_bytes,
        "footers_per_byte": footers / own_bytes,
    }


def pipeline(folder: str) -> dict[str, float]:
    """Start a real pipeline on a local Ray: the rank's own CPU until its first batch, and idle."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_AUTO_CONNECT": "0"}
    os.environ["PYTHONPATH"] = str(PACKAGE)
    import ray
    import ray.data
    from data.prepared_factory import write_prepared
    from raymill.data.store.blocks import SourceShape
    from raymill.data.store.order import Order
    from raymill.data.store.stream import RankStream, StreamSpec

    small = Path(folder) / "pipeline"
    write_prepared(
        small, sequence_length=1024, row_group_rows=64, vocab_size=50_000, shard_rows=(4096,) * 2
    )
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    order = Order([SourceShape("", 1.0, 64, (4096,) * 2)], SEED, WINDOW, 32)
    figures: dict[str, float] = {}
    # The first of a process imports more of Ray.
    for name in ("first", "later"):
        used, started = cpu_s(), time.perf_counter()
        stream = RankStream(StreamSpec((small,), order, 1, 0, 32 * 4000), 0)
        next(stream)
        figures[f"{name}_cpu_s"] = cpu_s() - used
        figures[f"{name}_s"] = time.perf_counter() - started
    time.sleep(2)
    used, started = cpu_s(), time.perf_counter()
    time.sleep(5)
    figures["idle_cores"] = (cpu_s() - used) / (time.perf_counter() - started)
    actors = ray._private.state.actors().values()
    figures["central_actors"] = sum("Actor" in actor["ActorClassName"] for actor in actors)
    # Its execution ends with it.
    del stream
    ray.shutdown()
    return figures


FUNCTIONS: dict[str, Callable[..., dict[str, float]]] = {
    "open": open_manifest,
    "share": share,
    "before": share_before,
    "bytes": real_bytes,
    "pipeline": pipeline,
}


def measured(name: str, *arguments: object, package: Path | None = None) -> subprocess.Popen[str]:
    environment = dict(os.environ)
    if package is not None:
        environment["RAYMILL_PACKAGE"] = str(package)
    return subprocess.Popen(
        [sys.executable, __file__, "--measure", json.dumps([name, *arguments])],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def result(process: subprocess.Popen[str]) -> dict[str, float]:
    output, _ = process.communicate()
    if process.returncode:
        sys.exit(f"a measurement failed with status {process.returncode}")
    figures: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 1024, 8192])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--measure")
    parser.add_argument("--write", nargs=2)
    options = parser.parse_args()
    if options.write:
        folder, version = options.write
        print(json.dumps({"cpu_s": write_corpus(Path(folder), version == "1")}))
        return
    if options.measure:
        name, *arguments = json.loads(options.measure)
        print(json.dumps(FUNCTIONS[name](*arguments)))
        return
    figures: dict[str, Any] = {}

    def say(name: str, values: dict[str, float]) -> None:
        figures[name] = values
        print(f"{name:32} " + "  ".join(f"{k} {v:,.3g}" for k, v in values.items()), flush=True)

    with tempfile.TemporaryDirectory() as folder:
        for label, package in (("", None), ("before: ", options.before)):
            if label and package is None:
                continue
            place = Path(folder) / ("new" if not label else "old")
            environment = dict(os.environ)
            if package is not None:
                package = package / "platform"
                environment["RAYMILL_PACKAGE"] = str(package)
            output = subprocess.run(
                [sys.executable, __file__, "--write", str(place), "1" if label else "2"],
                capture_output=True, text=True, check=True, env=environment,
            ).stdout  # fmt: skip
            size = sum(path.stat().st_size for path in place.glob("*.*"))
            say(f"{label}write manifest", {**json.loads(output), "mib": size / MIB})
            # Two processes of a node at once, neither of which finds anything prepared.
            two = [measured("open", str(place), package=package) for _ in range(2)]
            for number, process in enumerate(two):
                say(f"{label}open manifest, process {number}", result(process))
            for ranks in options.ranks:
                if label:
                    say(
                        f"{label}{ranks} ranks",
                        result(measured("before", str(place), ranks, package=package)),
                    )
                    continue
                for at in (0.01, 0.5, 0.99):
                    say(
                        f"{ranks} ranks, at {at:.0%}",
                        result(measured("share", str(place), ranks, 1, at)),
                    )
                say(
                    f"{ranks} ranks, 5 sources",
                    result(measured("share", str(place), ranks, 5, 0.5)),
                )
        say("bytes of a real corpus", result(measured("bytes")))
        say("pipeline", result(measured("pipeline", folder)))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
