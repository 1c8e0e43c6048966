"""Models under ZeRO-3 from their first moment: each rank's values, and the memory that it takes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.probe import ARCH, SEED, VOCAB, Case, job_of
from engine.ranks import run_ranks
from raymill.model.build import build_model
from raymill.plan.memory import state_bytes
from raymill.plan.parameters import count_parameters

WORLD, MANY = 2, 16
# 308 million parameters, so that a whole copy (1.2 GB) is more than the bound.
LARGER = replace(
    ARCH, hidden_size=1024, layers=24, heads=16, kv_heads=16, intermediate_size=2816
)  # fmt: skip
MARGIN = 256 * 2**20
# DeepSpeed's names of what a parameter's own slice is in low precision.
LOW = "low"


def build_parts(rank: int, folder: Path, world: int, precision: str, large: bool) -> None:
    """Build a rank's part in a group without other processes; write its values, or its peak."""
    os.environ.update(
        RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world), LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1", MASTER_PORT="1",
    )  # fmt: skip
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from raymill.engine.device import choose_device, join_deepspeed
    from raymill.engine.group import WorkerGroup
    from raymill.engine.trainer import Trainer
    from raymill.model.build import plan_model

    device = choose_device(False)
    dist.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    join_deepspeed(False)
    group = WorkerGroup(device)
    job = job_of(Case(3, micro_batch=1, batch=world, precision=precision))
    trainer = Trainer(job, plan_model(ARCH, VOCAB, 0, SEED), group)
    if large:
        # What the libraries import for their first model isn't the model's memory.
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        trainer = Trainer(replace(job, arch=LARGER), plan_model(LARGER, VOCAB, 0, SEED), group)
        (folder / "peak.json").write_text(json.dumps(memory("VmHWM") - before))
    else:
        arrays = {name: values["fp32"] for name, _, values in trainer.fragments()}
        slices = {
            f"{LOW}/{name}": parameter.ds_tensor.float().numpy()  # type: ignore[attr-defined]
            for name, parameter in trainer.model.named_parameters()
        }
        np.savez(folder / f"{precision}-{rank}.npz", **arrays, **slices)
    os._exit(0)


def memory(field: str) -> int:
    """Return a figure of this process in bytes, as the kernel counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_rank_has_its_slices_of_the_values_that_one_process_builds(
    precision: str, tmp_path: Path
) -> None:
    run_ranks(build_parts, (tmp_path, WORLD, precision, False), WORLD)
    parts = [np.load(tmp_path / f"{precision}-{rank}.npz") for rank in range(WORLD)]
    for name, whole in build_model(ARCH, VOCAB, 0, SEED).named_parameters():
        flat = whole.detach().flatten()
        masters = np.concatenate([part[name] for part in parts if name in part])
        # In full precision, and not the rounding's.
        assert np.array_equal(masters, flat.numpy()), name
        low = np.concatenate([part[f"{LOW}/{name}"] for part in parts])[: len(flat)]
        rounded = flat.bfloat16().float() if precision == "bf16" else flat
        assert np.array_equal(low, rounded.numpy()), name


def test_a_worker_takes_its_share_and_not_the_whole_model(tmp_path: Path) -> None:
    run_ranks(build_parts, (tmp_path, MANY, "fp32", True), 1)
    peak = json.loads((tmp_path / "peak.json").read_text())
    count = count_parameters(LARGER, VOCAB)
    state = sum(state_bytes(count.total, 3, MANY, "fp32", accumulate_fp32=True))
    largest = 4 * max(rows * columns for rows, columns, _ in count.matrices)
    buckets = 4 * job_of(Case(3)).zero.bucket_elements
    bound = state + buckets + largest + MARGIN
    assert bound < 4 * count.total, "a whole copy would pass as a share"
    assert state / 4 < peak <= bound


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_values_are_those_of_the_host() -> None:
    from raymill.model.build import plan_model

    on_host = plan_model(ARCH, VOCAB, 0, SEED).whole()
    on_device = plan_model(ARCH, VOCAB, 0, SEED).whole("cuda")
    expected = dict(on_host.named_parameters())
    for name, parameter in on_device.named_parameters():
        assert parameter.is_cuda
        assert torch.equal(parameter.cpu(), expected[name]), name
