"""Measure the speed of this machine: a matrix product, `import torch` in a fresh process, a write to disk.

    .venv/bin/python tools/machine.py

Machines differ by a factor of two from day to day, so benchmarks print `line()` with their absolute times.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

SIZE = 1024
PRODUCT_S = 2.0
IMPORTS = 2
WRITES = 20
# At this speed the nano model pretrains at 5,900 tokens/s (`bench/overhead.py`); at 290 it was 6,900.
REFERENCE_GFLOPS = 248.0


@dataclass(frozen=True)
class Machine:
    cores: int
    # Processes that wanted a core, averaged over the last minute.
    load: float
    gflops: float
    import_s: float
    fsync_ms: float

    @property
    def speed(self) -> float:
        """Speed of the matrix product relative to the reference."""
        return self.gflops / REFERENCE_GFLOPS


def measure(folder: Path) -> Machine:
    """Measure for about ten seconds; the file is written in `folder`."""
    load = os.getloadavg()[0]
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        load=load,
        import_s=import_seconds(),
        gflops=product_gflops(),
        fsync_ms=1000 * fsync_seconds(folder),
    )


def product_gflops() -> float:
    """Return the median speed of fp32 matrix products on all usable cores."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    left, right = (
        torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(n)) for n in (0, 1)
    )
    seconds = []
    deadline = time.perf_counter() + PRODUCT_S
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - start)
    return 2 * SIZE**3 / statistics.median(seconds) / 1e9


def import_seconds() -> float:
    """Return the shortest time of a process that imports torch, when its files are in memory."""
    seconds = []
    for _ in range(IMPORTS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def fsync_seconds(folder: Path) -> float:
    """Return the median time of a synchronous write of 4 kB."""
    seconds = []
    with tempfile.TemporaryFile(dir=folder) as stream:
        for _ in range(WRITES):
            start = time.perf_counter()
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def line(folder: Path | None = None) -> str:
    """Return the figures in one line, for a benchmark to print."""
    machine = measure(folder or Path.cwd())
    return (
        f"machine: {machine.cores} cores, load {machine.load:.1f}, speed {machine.speed:.2f} "
        f"({machine.gflops:.0f} GFLOP/s), import torch {machine.import_s:.2f} s, "
        f"fsync {machine.fsync_ms:.1f} ms"
    )


def main() -> None:
    machine = measure(Path.cwd())
    print(f"usable cores                      {machine.cores}")
    print(f"load of the last minute           {machine.load:.1f}")
    print(f"fp32 product, {SIZE} x {SIZE}         {machine.gflops:.1f} GFLOP/s")
    print(f"  relative to the reference       {machine.speed:.2f}")
    print(f"import torch, a fresh process     {machine.import_s:.2f} s")
    print(f"4 kB written to the disk          {machine.fsync_ms:.2f} ms")


if __name__ == "__main__":
    main()
