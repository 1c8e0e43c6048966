"""Damage by storage: full disks, torn and flipped files. Each is named, and costs one interval of steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from driver import job
from driver.conftest import Workshop
from driver.test_kills import found
from driver.test_storm import damage_newest
from faults.injector import happened, with_faults

pytestmark = [pytest.mark.integration, pytest.mark.chaos]
STEPS, EVERY = 100, 20
COMMON = (
    "tracking=none", f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "evaluation.every=0",
    "checkpoint.keep_last=100",
)  # fmt: skip


def run(workshop: Workshop, name: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    settings = (*workshop.overrides, *COMMON, f"run.name={name}")
    return job.run_alone("pretrain", *settings, cwd=workshop.root, env=env)


@pytest.mark.parametrize("what", ["full", "denied"])
def test_a_disk_that_takes_nothing_for_a_while(
    workshop: Workshop, tmp_path: Path, what: str
) -> None:
    """The checkpoint of step 20 fails three times, and the run continues without it; then the newest is damaged
    and Ray's own record of the run is torn, and it continues from the one before."""
    run_dir = workshop.run_dir(what)
    # The first call that makes a file durable fails, in each of the three tries.
    faults = [{"what": what, "rank": 0, "write": number} for number in (1, 2, 3)]
    until = f"{run_dir}/stop-requested*"
    hold = {"what": "hold", "until": until, "rank": 0, "step": 3 * EVERY + 6, "phase": "forward"}
    process = job.start(
        "pretrain", *workshop.overrides, *COMMON, f"run.name={what}", cwd=workshop.root,
        env=with_faults(tmp_path, *faults, hold),
    )  # fmt: skip
    job.wait_for(process, lambda: happened(tmp_path) == 4)  # it is held
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=job.TIMEOUT_S)
    assert process.returncode == 85, output
    assert happened(tmp_path) == 4
    [told] = [event["text"] for event in job.events(run_dir, "message")]
    assert told.startswith(f"the checkpoint of step {EVERY} was not committed (rank 0: ")
    assert "injected at write" in told
    assert told in output
    committed = [event["step"] for event in job.events(run_dir, "checkpoint")]
    assert committed[:2] == [2 * EVERY, 3 * EVERY]
    assert damage_newest(run_dir)
    (run_dir / "ray" / "older").mkdir(parents=True)
    (run_dir / "ray" / "older" / "checkpoint_manager_snapshot.json").write_text(
        '{"ray_version": "2.6'
    )
    code, output = run(workshop, what)
    assert code == 0, output
    assert "passed over a damaged checkpoint: " in output
    assert "rank-00000.safetensors" in output
    assert f"resumed at step {committed[-2]}" in output
    assert "Traceback" not in output
    assert run(workshop, f"calm-{what}")[0] == 0
    assert found(run_dir) == found(workshop.run_dir(f"calm-{what}"))


@contextmanager
def replaced(path: Path, data: bytes | None) -> Iterator[None]:
    """Another content for a while; None: no file at all."""
    before = path.read_bytes()
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(before)


def test_shards(workshop: Workshop) -> None:
    """Damage that can be seen early is refused before Ray starts; other damage when it is read."""
    [folder] = (workshop.root / "storage" / "data").glob("*/")
    shard = next(path for path in sorted(folder.rglob("*.parquet")) if "train" in str(path))
    whole = shard.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    cases = {"cut": whole[:-100], "gone": None, "flipped": bytes(flipped)}
    for name, data in cases.items():
        with replaced(shard, data):
            code, output = run(workshop, f"shard-{name}")
        assert code == 1, (name, output)
        assert shard.name in output, (name, output)
        assert "Traceback" not in output, (name, output)
        assert job.events(workshop.run_dir(f"shard-{name}"), "step") == [] or name == "flipped"
        assert ("starting workers" in output) == (name == "flipped"), output
    code, output = run(workshop, "shard-flipped")
    assert code == 0, "and with the file as it was, the same command goes on"
