"""How fast this machine is now: a matrix product, `import torch` in a fresh process, a write to the disk.

    .venv/bin/python tools/machine.py

Machines differ by a factor of two from day to day; benches print `line()` beside their absolute times.
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
# Where the nano model pretrains at 5,900 tokens/s (`bench/overhead.py`): it did at 6,900 where this was 290.
REFERENCE_GFLOPS = 248.0


@dataclass(frozen=True)
class Machine:
    cores: int
    load: float  # processes that wanted a core, averaged over the last minute
    gflops: float
    import_s: float
    fsync_ms: float

    @property
    def speed(self) -> float:
        """Of the matrix product, relative to the reference."""
        return self.gflops / REFERENCE_GFLOPS


def measure(folder: Path) -> Machine:
    """Take about ten seconds; the write is made in a folder."""
    load = os.getloadavg()[0]
    return Machine(
        cores=len(os.sched_getaffinity(0)),
        load=load,
        import_s=import_seconds(),
        gflops=product_gflops(),
        fsync_ms=1000 * fsync_seconds(folder),
    )


def product_gflops() -> float:
    """Of products of fp32 matrices on all usable cores, the median."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    left, right = (
        torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(n)) for n in (0, 1)
    )
    seconds = []
    deadline = time.perf_counter() + PRODUCT_S
    while time.perf_counter() < deadline:
        began = time.perf_counter()
        torch.mm(left, right)
        seconds.append(time.perf_counter() - began)
    return 2 * SIZE**3 / statistics.median(seconds) / 1e9


def import_seconds() -> float:
    """Of a process that imports torch; the least, so that its files are in memory."""
    seconds = []
    for _ in range(IMPORTS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def fsync_seconds(folder: Path) -> float:
    """Of a write of 4 kB that is waited for, the median."""
    seconds = []
    with tempfile.TemporaryFile(dir=folder) as stream:
        for _ in range(WRITES):
            began = time.perf_counter()
            stream.write(bytes(4096))
            stream.flush()
            os.fsync(stream.fileno())
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def line(folder: Path | None = None) -> str:
    """The figures in one line, for a bench to print."""
    found = measure(folder or Path.cwd())
    return (
        f"machine: {found.cores} cores, load {found.load:.1f}, speed {found.speed:.2f} "
        f"({found.gflops:.0f} GFLOP/s), import torch {found.import_s:.2f} s, fsync {found.fsync_ms:.1f} ms"
    )


def main() -> None:
    found = measure(Path.cwd())
    print(f"usable cores                      {found.cores}")
    print(f"load of the last minute           {found.load:.1f}")
    print(f"fp32 product, {SIZE} x {SIZE}         {found.gflops:.1f} GFLOP/s")
    print(f"  relative to the reference       {found.speed:.2f}")
    print(f"import torch, a fresh process     {found.import_s:.2f} s")
    print(f"4 kB written to the disk          {found.fsync_ms:.2f} ms")


if __name__ == "__main__":
    main()
