"""Time of a start: from the command to the first optimizer step of a tiny model, compared with a bare loop.

    .venv/bin/python bench/start.py [--rounds 3] [--cores 0,1]

The sides take turns, and the results are medians. Per round: `torchrun` of bench/start_bare.py, the baseline;
jobs/pretrain.py to its first step; its worker is killed, and the second attempt runs to its first step. The
data is prepared before, and an uncounted round brings all files into the page cache.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "tools")]

import machine
from raymill.timeline import VARIABLE

T = TypeVar("T")
LIMIT_S = 300.0
STEPS = 500  # more than are made before the worker is killed twice
TINY = (
    "experiment=tiny", "data=files", "data.sequence_length=64", "data.row_group_rows=8",
    "data.validation.fraction=0.2", "tokenizer.vocab_size=300",
)  # fmt: skip
# Marks of the driver and rank 0 in order, and the part of the start that each of them ends.
PARTS = {
    "interpreter": "interpreter",
    "configuration": "configuration",
    "resolved": "data and lease",
    "ray": "Ray",
    "trainer": "Ray Train's import",
    "worker": "placement, process group",
    "libraries": "libraries",
    "data": "opening the data",
    "model": "model",
    "learners": "DeepSpeed",
    "first evaluation": "first evaluation",
    "first step": "first batch and step",
}


@dataclass(frozen=True)
class Mark:
    at: float
    process: int
    name: str


@dataclass(frozen=True)
class Start:
    total_s: float
    parts_s: dict[str, float]
    processes: int
    stand_ins: int  # processes that only wait for a forked process to end
    cpu_s: float


def write_texts(folder: Path) -> None:
    """Write a few files with a pattern that can be learned."""
    folder.mkdir()
    for number in range(24):
        lines = [
            f"On day {number + i} the {('red', 'green', 'blue')[(number + i) % 3]} mill ground {i} sacks.\n"
            for i in range(60)
        ]
        (folder / f"{number:02d}.txt").write_text("".join(lines))


def environment() -> dict[str, str]:
    """Return a user's environment, without this process's package path and Ray settings."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONPATH"))}


def prepare(root: Path) -> Path:
    """Prepare the data and return its folder."""
    write_texts(root / "texts")
    subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "prepare.py"), *TINY, f"data.path={root / 'texts'}"],
        cwd=root, env=environment(), check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (folder,) = (root / "storage" / "data").glob("files-*")
    return folder


def bare(data: Path) -> float:
    """Return the seconds from `torchrun` to the first step."""
    started = time.time()
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1",
         str(ROOT / "bench" / "start_bare.py"), str(data)],
        env=environment() | {"DS_ACCELERATOR": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        sys.exit(result.stdout + result.stderr)
    (reached,) = [text for text in result.stdout.splitlines() if text.startswith("first step ")]
    return float(reached.split()[-1]) - started


def starts(root: Path, name: str) -> tuple[Start, Start]:
    """Time the first attempt of a run, and the second one after its worker was killed."""
    timeline = root / f"{name}.timeline"
    started = time.time()
    with (root / f"{name}.log").open("w+") as log:
        driver = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *TINY, f"data.path={root / 'texts'}",
             f"run.name={name}", f"train.steps={STEPS}", "evaluation.every=0", "tracking=none"],
            cwd=root, env=environment() | {VARIABLE: str(timeline)}, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            first = _wait(driver, log.name, lambda: _reached(timeline, attempt=1))
            cold = _start(started, first, driver.pid)
            committed = root / "storage" / "runs" / name / "checkpoints"
            _wait(driver, log.name, lambda: list(committed.glob("step-*/MANIFEST.json")))
            os.kill(first[-1].process, signal.SIGKILL)
            second = _wait(driver, log.name, lambda: _reached(timeline, attempt=2))
            return cold, _start(second[0].at, second[1:], driver.pid)
        finally:
            # Everything that the driver started ends with it.
            driver.kill()
            driver.wait()


def _wait(driver: subprocess.Popen[bytes], log: str, poll: Callable[[], T]) -> T:
    deadline = time.monotonic() + LIMIT_S
    while not (value := poll()):
        if driver.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the run made no step:\n{Path(log).read_text()}")
        time.sleep(0.02)
    return value


def _reached(timeline: Path, attempt: int) -> list[Mark]:
    """Return the marks of an attempt from its start to its first step; none before that step."""
    if not timeline.exists():
        return []
    marks = []
    for text in timeline.read_text().splitlines():
        at, process, name = text.split("\t")
        marks.append(Mark(float(at), int(process), name))
    ends = [i for i, mark in enumerate(marks) if mark.name == "first step"]
    if len(ends) < attempt:
        return []
    firsts = [0, *[i for i, mark in enumerate(marks) if mark.name == "trainer"][1:]]
    return marks[firsts[attempt - 1] : ends[attempt - 1] + 1]


def _start(started: float, marks: Sequence[Mark], driver: int) -> Start:
    """Return the times of an attempt, with the driver's processes as they are now."""
    parts, before = {}, started
    for mark in marks:
        parts[PARTS[mark.name]] = mark.at - before
        before = mark.at
    processes = [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]
    cpu, stand_ins = 0.0, 0
    for process in processes:
        try:
            # The time of ended processes is in that of the processes that waited for them.
            cpu += sum(process.cpu_times()[:4])
            stand_ins += any("fork_launcher.py" in text for text in process.cmdline())
        except psutil.NoSuchProcess:
            continue
    return Start(before - started, parts, len(processes), stand_ins, cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", help="the cores to run on, as in 0,1")
    arguments = parser.parse_args()
    if arguments.cores:
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    # SIGTERM must run the `finally` that ends the driver.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    baseline, cold, second = [], [], []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        print(machine.line(root), flush=True)
        data = prepare(root)
        bare(data)
        for number in range(arguments.rounds):
            baseline.append(bare(data))
            first, again = starts(root, f"start-{number}")
            cold.append(first)
            second.append(again)
            print(
                f"round {number + 1}: baseline {baseline[-1]:.1f} s, start {first.total_s:.1f} s, "
                f"second attempt {again.total_s:.1f} s", flush=True,
            )  # fmt: skip
    bare_s = statistics.median(baseline)
    total_s = statistics.median(start.total_s for start in cold)
    again_s = statistics.median(start.total_s for start in second)
    print(f"\nto the first step, median of {arguments.rounds} rounds")
    print(f"  torchrun of a bare loop       {bare_s:6.2f} s")
    print(f"  jobs/pretrain.py              {total_s:6.2f} s, {total_s / bare_s:.2f} of it")
    print(f"  its second attempt            {again_s:6.2f} s, {again_s / bare_s:.2f} of it")
    print("by part                            cold   again")
    for part in PARTS.values():
        times = [
            f"{statistics.median(start.parts_s[part] for start in side):7.2f}"
            if part in side[0].parts_s
            else "      -"
            for side in (cold, second)
        ]
        print(f"  {part:28} {times[0]} {times[1]}")
    processes, stand_ins = (
        statistics.median(getattr(start, name) for start in cold)
        for name in ("processes", "stand_ins")
    )
    cpu = statistics.median(start.cpu_s for start in cold)
    print(
        f"processes at the first step {processes:.0f} ({stand_ins:.0f} of them only wait for a fork)"
    )
    print(f"CPU-seconds until then      {cpu:.1f}")
    print(machine.line())


if __name__ == "__main__":
    main()
