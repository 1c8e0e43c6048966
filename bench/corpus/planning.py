"""CPU and memory of the driver for each input file: planning, and items sent through tasks.

    .venv/bin/python bench/corpus/planning.py [--files 100000] [--items 5000]

Files of JSON lines (200 bytes; every thousandth is larger than a unit) lie in folders of 1,000. `path` is the
plan of `data.path`, a list in memory; `sources` that of `data.sources`, in this process and with tasks on a
local Ray. `one more` counts the units that change when one file is added. Memory is what the process keeps
(resident, after the plan is made), CPU its own time without the tasks'.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tests")]

from raymill.data import cluster_tasks
from raymill.data.sources.inputs import Unit
from raymill.data.sources.planning import plan_units
from raymill.schema.data_sections import DataConfig
from sections import plain

LINE = b'{"text": "' + b"x" * 186 + b'"}\n'
UNIT_BYTES = 1 << 20
PER_FOLDER = 1000


def write_files(folder: Path, count: int) -> None:
    """Write the inputs; every thousandth is cut into several ranges."""
    for number in range(count):
        place = folder / f"{number // PER_FOLDER:04d}"
        place.mkdir(exist_ok=True)
        large = number % 1000 == 0
        (place / f"{number:07d}.jsonl").write_bytes(
            LINE * (3 * UNIT_BYTES // len(LINE) if large else 1)
        )


def measured(name: str, count: int, make: Callable[[], Any]) -> Any:
    """Print CPU, wall time and kept memory of a call, for each of `count` inputs."""
    gc.collect()
    process = psutil.Process()
    before, cpu, wall = process.memory_info().rss, time.process_time(), time.monotonic()
    result = make()
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    gc.collect()
    kept = process.memory_info().rss - before
    print(
        f"{name:<28}{1e6 * cpu / count:8.1f} µs CPU {1e6 * wall / count:8.1f} µs wall "
        f"{kept / count:8.0f} bytes an input",
        flush=True,
    )
    return result


def as_sets(units: Sequence[Unit]) -> set[tuple[str, ...]]:
    """Return each unit as the names of its ranges."""
    return {tuple(f"{span.name}@{span.offset}" for span in unit) for unit in units}


def nothing(item: int, shared: None) -> int:
    """Do nothing with an item."""
    return item


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=5_000)
    options = parser.parse_args()
    # What is imported later would count as memory of the plan.
    from raymill.cluster import local_ray

    importlib.import_module("ray")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_files(folder, options.files)
        shared: dict[str, Any] = {"name": "d", "source": "files", "shard_input_bytes": UNIT_BYTES}
        sources = {"s": {"path": [temporary]}}
        declared = plain(DataConfig, path=None, sources=sources, **shared)
        plan = measured("sources, this process", options.files, lambda: plan_units(declared, 1))
        before, units = as_sets(plan), len(plan)
        plan = measured(
            "path",
            options.files,
            lambda: plan_units(plain(DataConfig, path=(temporary,), **shared), 1),
        )
        by_path = as_sets(plan)
        middle = folder / f"{options.files // PER_FOLDER // 2:04d}" / "0_new.jsonl"
        middle.write_bytes(LINE)
        after = as_sets(plan_units(declared, 1))
        path_after = as_sets(plan_units(plain(DataConfig, path=(temporary,), **shared), 1))
        print(f"one more: {len(after - before)} of {units} units change with sources,")
        print(f"          {len(path_after - by_path)} of {len(by_path)} with path", flush=True)
        local_ray.start_local_ray(slots=2)
        measured("sources, tasks", options.files, lambda: plan_units(declared, 1))
        for count in (options.items // 5, options.items):
            measured(
                f"{count} items through tasks",
                count,
                lambda count=count: sum(
                    1 for _ in cluster_tasks.parallel(nothing, range(count), shared=None)
                ),
            )


if __name__ == "__main__":
    main()
