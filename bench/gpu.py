"""One prepared run on a GPU: every kind of job to its end, exact resume, models born sharded, and the trainer's
speed and memory; the figures go into one JSON.

    python bench/gpu.py --json storage/gpu.json           # about eight minutes on an H100
    python bench/gpu.py --cpu --parts jobs resume         # the same commands on a machine without a GPU

Each part is a process of its own with a limit of time, so that a part that fails or hangs costs no other its
figures. The exit code is 1 if one of them failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
JOB_LIMIT_S, TRAINER_LIMIT_S, BORN_LIMIT_S = 150, 90, 60
STEPS, KILLED_AT = 60, 20
# The stages of the pipeline in a form so small that starting them is most of the work.
STAGES = ("sft", "reward", "rlhf")


@dataclass(frozen=True)
class Machine:
    """Device on which the parts run: its cluster preset and its precision."""

    cluster: str
    precision: str

    @property
    def overrides(self) -> tuple[str, ...]:
        """Overrides of one job."""
        return (f"cluster={self.cluster}", f"train.precision={self.precision}")

    @property
    def stage_overrides(self) -> tuple[str, ...]:
        """Overrides of the pipeline, whose later stages have settings of their own."""
        return (
            *self.overrides,
            *(f"{stage}.train.precision={self.precision}" for stage in STAGES),
        )


class PartError(Exception):
    """A command of a part failed; its last lines are the message."""


def main() -> None:
    parts: dict[str, Callable[[Machine, Path], dict[str, Any]]] = {
        "jobs": run_jobs,
        "resume": resume,
        "born": born,
        "trainer": trainer,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=list(parts), default=list(parts))
    parser.add_argument("--cpu", action="store_true", help="run on the CPU, in fp32")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    machine = Machine("local", "fp32") if arguments.cpu else Machine("local_gpu", "bf16")
    figures: dict[str, Any] = {"date": str(date.today()), "commit": commit(), **versions()}
    failed = []
    for name in arguments.parts:
        started = time.monotonic()
        with scratch_folder() as folder:
            try:
                figures[name] = parts[name](machine, folder)
            except (PartError, subprocess.TimeoutExpired) as error:
                figures[name] = {"error": str(error)}
                failed.append(name)
        figures[name]["seconds"] = round(time.monotonic() - started, 1)
        print(f"{name}: {json.dumps(figures[name], indent=1)}", flush=True)
        # Written after each part, so that what was measured outlives a limit on the whole.
        if arguments.json is not None:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    sys.exit(1 if failed else 0)


def run_jobs(machine: Machine, folder: Path) -> dict[str, Any]:
    """Run each kind of job to its end on tiny models: seconds of each, and what was registered."""
    write_inputs(folder)
    tiny = ("experiment=tiny", "tracking=local")
    pipeline = partial(job, "pipeline", cwd=folder)
    seconds: dict[str, float] = {}
    output = ""
    seconds["pretrain, sft, rank, reward, grpo"], output = pipeline(
        *tiny, *machine.stage_overrides, "data=files", f"data.path={folder / 'texts'}",
        "tokenizer.vocab_size=300", "data.sequence_length=64", "data.row_group_rows=8",
        "data.validation.fraction=0.2", "run.name=whole", f"sft.data.path={folder / 'chats.jsonl'}",
        "sft.data.row_group_rows=8", f"rank.data.path={folder / 'prompts.jsonl'}",
        f"rlhf.data.path={folder / 'prompts.jsonl'}", "rlhf.data.row_group_rows=4",
        "rlhf.data.sequence_length=40", "reward.data.sequence_length=63", "ask=Which mill?",
    )  # fmt: skip
    registered = re.findall(r"registered (models:/\S+)", output)
    [pairs] = (folder / "storage" / "rankings").glob("*/preferences.parquet")
    seconds["dpo"], output = job(
        "dpo", f"data.path={pairs}", *machine.overrides, "data.sequence_length=63",
        "data.validation.fraction=0.5",
        "data.row_group_rows=8", "train.steps=6", "train.global_batch=8", "train.micro_batch=4",
        "schedule.warmup_steps=0", "evaluation.rows=8", "run.name=dpo", cwd=folder,
    )  # fmt: skip
    registered += re.findall(r"registered (models:/\S+)", output)
    seconds["ppo"], output = job(
        "rlhf", "experiment=rlhf_tiny", "algorithm=ppo", "algorithm.minibatches=2",
        f"data.path={folder / 'prompts.jsonl'}", *machine.overrides, "data.row_group_rows=4",
        "data.sequence_length=40", "parent=models:/assistant@sft", "run.name=ppo", cwd=folder,
    )  # fmt: skip
    registered += re.findall(r"registered (models:/\S+)", output)
    return {"job_seconds": seconds, "registered": registered}


def resume(machine: Machine, folder: Path) -> dict[str, Any]:
    """Kill a run without warning, resume it, and compare its losses with an undisturbed run's."""
    write_inputs(folder)
    arguments = (
        "experiment=tiny", "tracking=none", "data=files", f"data.path={folder / 'texts'}",
        "tokenizer.vocab_size=300", "data.sequence_length=64", "data.row_group_rows=8",
        "data.validation.fraction=0.2", f"train.steps={STEPS}", "checkpoint.every=5",
        "evaluation.every=0", *machine.overrides,
    )  # fmt: skip
    job("prepare", *arguments, cwd=folder)
    job("pretrain", *arguments, "run.name=through", cwd=folder)
    runs = folder / "storage" / "runs"
    process = subprocess.Popen(
        command("pretrain", *arguments, "run.name=killed"), cwd=folder, env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + JOB_LIMIT_S
    while len(losses(runs / "killed")) < KILLED_AT and time.monotonic() < deadline:
        if process.poll() is not None:
            raise PartError("the run to be killed ended by itself")
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, output = job("pretrain", *arguments, "run.name=killed", cwd=folder)
    through, killed = losses(runs / "through"), losses(runs / "killed")
    if "resumed at step" not in output or len(through) != STEPS:
        raise PartError("the run wasn't resumed, or not to its end:\n" + last_lines(output))
    return {"steps": STEPS, "equal_losses": sum(through[s] == killed.get(s) for s in through)}


def born(machine: Machine, folder: Path) -> dict[str, Any]:
    """Build a model of one billion parameters in full, and rank 0's share of one of eight among eight."""
    script = ROOT / "bench" / "scale" / "start.py"
    device = "cpu" if machine.cluster == "local" else "cuda"
    figures = {}
    for arch, world in (("llama_1b", 1), ("llama3_8b", 8)):
        target = folder / f"{arch}.json"
        run(
            [sys.executable, str(script), "--arch", arch, "--ranks", str(world),
             "--device", device, "--memory-gib", "100", "--json", str(target)],
            folder, BORN_LIMIT_S,
        )  # fmt: skip
        figures[f"{arch}, rank 0 of {world}"] = json.loads(target.read_text())
    return figures


def trainer(machine: Machine, folder: Path) -> dict[str, Any]:
    """Compare the trainer with a bare loop; its speed, memory and checkpoints."""
    if machine.cluster == "local":
        raise PartError("bench/gpu_trainer.py needs a GPU")
    script = ROOT / "bench" / "gpu_trainer.py"
    _, output = run([sys.executable, str(script)], folder, TRAINER_LIMIT_S)
    return {"lines": output.splitlines()}


def job(name: str, *overrides: str, cwd: Path) -> tuple[float, str]:
    """Run a job as a user does; return its seconds and its output."""
    return run(command(name, *overrides), cwd, JOB_LIMIT_S)


def command(name: str, *overrides: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *overrides]


def run(arguments: Sequence[str], cwd: Path, limit_s: float) -> tuple[float, str]:
    """Run a command in its own session; return its seconds and its output.

    Raises:
        PartError: it failed, or took longer than `limit_s`.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        arguments, cwd=cwd, env=environment(), text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        # Its Ray, its workers and its samplers belong to the same session.
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise PartError(f"more than {limit_s:g} s: {last_lines(output)}") from None
    if process.returncode:
        raise PartError(f"{' '.join(arguments[1:3])} …: {last_lines(output)}")
    return round(time.monotonic() - started, 1), output


def environment() -> dict[str, str]:
    return os.environ | {"RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "disabled")}


def last_lines(output: str, count: int = 15) -> str:
    return "\n".join(output.splitlines()[-count:])


def losses(run_dir: Path) -> dict[int, float]:
    """Return each step's loss, as it was written last; a line being written is left out."""
    path = run_dir / "metrics.jsonl"
    if not path.exists():
        return {}
    events = [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return {event["step"]: event["train/loss"] for event in events if event["kind"] == "step"}


def write_inputs(folder: Path) -> None:
    """Write texts, conversations and prompts of a few hundred records."""
    texts = folder / "texts"
    texts.mkdir()
    for number in range(12):
        lines = [f"mill {n} of row {number} grinds {n * number % 97} sacks" for n in range(400)]
        (texts / f"{number:02d}.txt").write_text("\n".join(lines))
    chats = [{"prompt": f"Which mill is {n}?", "completion": f"Mill {n % 9}."} for n in range(300)]
    prompts = [{"prompt": f"Which mill is {n}?", "verifier": "length"} for n in range(60)]
    for name, records in (("chats", chats), ("prompts", prompts)):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(text)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    (ROOT / "storage").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / "storage", ignore_cleanup_errors=True) as name:
        yield Path(name)


def commit() -> str:
    """Return the commit of this tree, or "unknown" outside of a repository."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Return the hardware and the versions of the libraries that matter most."""
    import deepspeed
    import ray
    import torch

    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {
        "hardware": hardware,
        "torch": torch.__version__,
        "deepspeed": deepspeed.__version__,
        "ray": ray.__version__,
    }


if __name__ == "__main__":
    main()
