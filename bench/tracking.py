"""What a tracking server that is down, refuses, or hangs costs the training: median step time against a run
without tracking, in turns.

    .venv/bin/python bench/tracking.py [--turns 3] [--steps 300]

Runs of jobs/pretrain.py with a tiny model on one worker, whose steps take milliseconds, so that what would
disturb them shows. Needs the demo's prepared data (make demo).
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = [
    "experiment=demo", "arch.hidden_size=128", "arch.layers=2", "arch.heads=4", "arch.kv_heads=4",
    "arch.intermediate_size=384", "train.global_batch=4", "train.micro_batch=4", "train.threads=1",
    "evaluation.every=0", "evaluation.rows=4", "evaluation.prompts=[]", "evaluation.sample_every=0",
    "checkpoint.every=1000000", "tracking.register=false", "tracking.flush_timeout_s=1",
]  # fmt: skip
WARM_UP = 20  # steps not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {"down": [], "refuses": [], "hangs": []}
    with tempfile.TemporaryDirectory(dir=ROOT) as name, refusing() as refused, hanging() as hung:
        folder = Path(name)
        (folder / "data").symlink_to(ROOT / "storage" / "data")
        ports = {"down": unused(), "refuses": refused, "hangs": hung}
        for turn in range(arguments.turns):
            for kind, port in ports.items():
                without = step_s(folder, f"none-{turn}-{kind}", arguments.steps, "tracking=none")
                uri = f"tracking.uri=http://127.0.0.1:{port}"
                with_it = step_s(folder, f"{kind}-{turn}", arguments.steps, "tracking=server", uri)
                ratios[kind].append(with_it / without)
                print(
                    f"{kind:<9}{with_it * 1e3:.2f} ms a step, without tracking {without * 1e3:.2f}"
                )
    for kind, found in ratios.items():
        print(f"{kind:<9}{statistics.median(found) - 1:+.1%} (median of {len(found)} turns)")


def step_s(folder: Path, name: str, steps: int, *tracking: str) -> float:
    """Median seconds of a step of one run."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *MODEL, *tracking,
         f"storage.root={folder}", f"train.steps={steps}", f"run.name={name}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    events = [event for event in map(json.loads, lines) if event["kind"] == "step"]
    return statistics.median(event["perf/step_s"] for event in events[WARM_UP:])


@contextmanager
def refusing() -> Iterator[int]:
    """Answers 500 to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(500)

        do_POST = do_GET  # noqa: N815 - the name http.server calls

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@contextmanager
def hanging() -> Iterator[int]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield listener.getsockname()[1]


def unused() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
