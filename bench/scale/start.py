"""A worker's start at scale: seconds and memory until one rank's share of a model is ready to train.

    .venv/bin/python bench/scale/start.py [--ranks 8 64 1024 8192] [--arch llama3_70b] [--json start.json]
    .venv/bin/python bench/scale/start.py --largest 4 --memory-gib 14

Each measurement is a process of its own that builds rank 0 of a fake world (torch's `fake` process group runs
no collectives) through the trainer that the platform uses. The peak is the process's VmHWM above what it had
after its imports. Where a share is larger than `--memory-gib`, a model with fewer layers is measured and the
rest computed: both are linear in the layers. `--tree` measures another checkout of the platform.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
MARGIN = 256 * 2**20
# Depths at which a model is measured that doesn't fit in full.
FEW = (1, 3)
# A worker of the largest model needs room for the interpreter and its imports, too.
IMPORTS = GIB


def planned(arch: Any, ranks: int, stage: int, precision: str, bucket: int) -> dict[str, float]:
    """Return the planned state of a rank, its buckets, and the largest parameter, in bytes."""
    from raymill.plan.memory import state_bytes
    from raymill.plan.parameters import count_parameters

    count = count_parameters(arch, arch.vocab_size)
    low = 2 if precision == "bf16" else 4
    largest = max(
        arch.vocab_size * arch.hidden_size, *(rows * columns for rows, columns, _ in count.matrices)
    )
    return {
        "parameters": count.total,
        "state": sum(state_bytes(count.total, stage, ranks, precision, accumulate_fp32=True)),
        # DeepSpeed reduces gradients in a bucket of this many elements, in fp32.
        "buckets": 4.0 * bucket,
        "largest": float(low * largest),
    }


def status(field: str) -> int:
    """Return a figure of this process in bytes, as the kernel counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def build(
    arch: str, layers: int, ranks: int, rank: int, stage: int, precision: str, kind: str
) -> None:
    """Build one rank's share in this process, and print what it took."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1", MASTER_PORT="1",
    )  # fmt: skip
    import torch
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from raymill.config.compose import load
    from raymill.engine.device import choose_device, join_deepspeed
    from raymill.engine.group import WorkerGroup
    from raymill.engine.trainer import Trainer
    from raymill.model import build as model_build

    job: Any = load(
        "pretrain",
        [f"arch={arch}", f"zero=stage{stage}", f"train.precision={precision}", "train.steps=100",
         f"train.global_batch={ranks}", "train.micro_batch=1", f"cluster.gpu={str(kind == 'cuda').lower()}"],
    )  # fmt: skip
    job = replace(job, arch=replace(job.arch, layers=layers or job.arch.layers))
    device = choose_device(kind == "cuda")
    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    join_deepspeed(kind == "cuda")
    group = WorkerGroup(device)
    # The libraries that the first model imports aren't the model's memory.
    tiny = replace(job.arch, hidden_size=64, intermediate_size=64, heads=1, kv_heads=1, head_dim=64,
                   layers=1, vocab_size=64)  # fmt: skip
    # Checkouts from before models were planned build them whole.
    plan: Any = getattr(model_build, "plan_model", model_build.build_model)
    Trainer(replace(job, arch=tiny), plan(tiny, 64, 0, 1), group)
    Path("/proc/self/clear_refs").write_text("5")
    before, began, cpu = status("VmRSS"), time.perf_counter(), time.process_time()
    trainer = Trainer(job, plan(job.arch, job.arch.vocab_size, 0, 1), group)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - began,
                "cpu_seconds": time.process_time() - cpu,
                "peak": status("VmHWM") - before,
                "device_peak": torch.cuda.max_memory_allocated() if kind == "cuda" else 0,
                "owned": sum(part.numel for part in trainer.owned()),
                "threads": torch.get_num_threads(),
                **planned(job.arch, ranks, stage, precision, job.zero.bucket_elements),
            }
        ),
        flush=True,
    )
    # Nothing is left to clean up, and tearing a fake group down takes time.
    os._exit(0)


def measured(
    arch: str, layers: int, ranks: int, *, stage: int = 3, precision: str = "bf16", rank: int = 0,
    tree: Path = ROOT, kind: str = "cpu",
) -> dict[str, float]:  # fmt: skip
    """Build a rank's share in a process of its own; `layers=0` stands for the model's own."""
    command = [
        sys.executable, __file__, "--build", arch, str(layers), str(ranks), str(rank), str(stage),
        precision, kind,
    ]  # fmt: skip
    paths = f"{tree / 'platform'}:{tree / 'tests'}"
    found = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    if found.returncode:
        raise RuntimeError(found.stderr[-2000:])
    result: dict[str, float] = json.loads(found.stdout.strip().splitlines()[-1])
    return result


def share(
    arch: str, ranks: int, memory: float, tree: Path, precision: str, kind: str
) -> dict[str, Any]:
    """Measure a rank's share in full if it fits into `memory` bytes, else at a few layers."""
    layers, needed = _needs(arch, ranks, precision, tree != ROOT)
    if needed < memory:
        return {
            "how": "measured",
            **measured(arch, 0, ranks, precision=precision, tree=tree, kind=kind),
        }
    small, large = (
        measured(arch, few, ranks, precision=precision, tree=tree, kind=kind) for few in FEW
    )
    grown = (layers - FEW[1]) / (FEW[1] - FEW[0])
    computed = {key: large[key] + grown * (large[key] - small[key]) for key in large}
    # The largest parameter and the buckets don't grow with the layers.
    return {"how": f"computed from {FEW[0]} and {FEW[1]} layers", **computed}


def _needs(arch: str, ranks: int, precision: str, whole: bool) -> tuple[int, float]:
    """Return a model's layers, and about how many bytes its rank takes at the start."""
    from raymill.config.compose import load

    found = load("pretrain", [f"arch={arch}"]).arch
    plan = planned(found, ranks, 3, precision, 0)
    built = 4.0 * plan["parameters"] if whole else 0.0
    return found.layers, plan["state"] + plan["largest"] + built


def table(rows: list[dict[str, Any]]) -> str:
    """Format the measurements."""
    lines = [f"{'code':>7} {'ranks':>6} {'CPU s':>8} {'peak GiB':>9} {'bound GiB':>10}  how"]
    for row in rows:
        bound = row["state"] + row["buckets"] + row["largest"] + MARGIN
        lines.append(
            f"{row['code']:>7} {row['ranks']:>6} {row['cpu_seconds']:>8.1f} {row['peak'] / GIB:>9.2f} "
            f"{bound / GIB:>10.2f}  {row['how']}"
        )
    return "\n".join(lines)


def largest(world: int, memory: float) -> list[dict[str, Any]]:
    """Build each rank of the largest model, one after another, that fits into `memory` bytes."""
    from raymill.config.compose import load

    names = sorted(path.stem for path in (ROOT / "conf" / "arch").glob("*.yaml"))
    fitting = []
    # `from_model` has no size of its own.
    for name in [name for name in names if name != "from_model"]:
        arch = load("pretrain", [f"arch={name}"]).arch
        if arch.vocab_size is None:
            continue
        plan = planned(arch, world, 3, "bf16", 0)
        if plan["state"] + plan["largest"] + MARGIN + IMPORTS < memory:
            fitting.append((plan["parameters"], name))
    _, name = max(fitting)
    return [
        {"code": name, "ranks": world, "how": f"rank {rank}", **measured(name, 0, world, rank=rank)}
        for rank in range(world)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 1024, 8192])
    parser.add_argument("--arch", default="llama3_70b")
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--memory-gib", type=float, default=8.0)
    parser.add_argument("--tree", type=Path, action="append", default=[])
    parser.add_argument("--largest", type=int, metavar="WORLD")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--build", nargs=7, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        arch, layers, ranks, rank, stage, precision, kind = options.build
        build(arch, int(layers), int(ranks), int(rank), int(stage), precision, kind)
    memory = options.memory_gib * GIB
    if options.largest:
        rows = largest(options.largest, memory)
    else:
        rows = [
            {
                "code": tree.name,
                "ranks": ranks,
                **share(options.arch, ranks, memory, tree, options.precision, options.device),
            }
            for tree in [ROOT, *options.tree]
            for ranks in options.ranks
        ]
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.path[:0] = [] if "--build" in sys.argv else [str(ROOT / "platform")]
    main()
