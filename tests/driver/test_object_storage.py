"""A run in an object store, through the command line: killed, its machine lost, taken up on another one, it is
the run that was never killed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from driver import job, test_pipeline, test_resume
from driver.conftest import Workshop
from driver.test_resume import losses
from faults.injector import with_faults
from raymill.storage.bucket import Bucket

pytestmark = pytest.mark.integration
EVERY = 5
OFF = (
    "tracking=none", f"train.steps={test_resume.STEPS}", f"checkpoint.every={EVERY}", "evaluation.every=0",
    "run.name=kept",
)  # fmt: skip

# On a disk; where that module's tests have run already, the run is finished and is only read.
uninterrupted = test_resume.uninterrupted


def test_another_machine_goes_on_from_the_store(
    workshop: Workshop, uninterrupted: dict[int, tuple[float, float, str]], uri: str, tmp_path: Path
) -> None:
    root = workshop.root
    stored = (*workshop.overrides, f"storage.root={uri}")
    one, two = root / "one", root / "two"
    code, output = job.run("prepare", *stored, f"storage.scratch={one}", cwd=root)
    assert code == 0, output
    assert f"uploading {one / 'data'}" in output

    last = 2 * EVERY + 2
    fault = {"what": "sleep", "rank": 0, "step": last + 1, "phase": "forward"}
    process = job.start(
        "pretrain", *stored, *OFF, f"storage.scratch={one}", cwd=root,
        env=with_faults(tmp_path, fault),
    )  # fmt: skip
    run_dir = one / "runs" / "kept"
    job.wait_for_hold(process, run_dir)
    code, output = job.run("pretrain", *stored, *OFF, f"storage.scratch={two}", cwd=root)
    assert code == 1, output
    assert f"run kept is held by process {process.pid} of " in output
    job.kill_after(process, run_dir, last)
    made = losses(run_dir)
    shutil.rmtree(one)  # the machine is gone

    code, output = job.run_alone("pretrain", *stored, *OFF, f"storage.scratch={two}", cwd=root)
    assert code == 0, output
    assert "Traceback" not in output
    run_dir = two / "runs" / "kept"
    committed = job.events(run_dir, "attempt")[-1]["step"]
    assert committed >= EVERY, "it didn't begin anew"
    assert f"the checkpoint of step {committed} is read from {uri}/runs/kept" in output
    assert made.items() <= uninterrupted.items(), "before it was killed"
    assert losses(run_dir) == uninterrupted, "and after"

    code, output = job.run("audit", f"storage.root={uri}", "run.name=kept", cwd=root)
    assert code == 0, output
    assert "every byte verified" in output
    bucket = Bucket(f"{uri}/runs/kept")
    left = {key.split("/")[1] for key in bucket.sizes("checkpoints")}
    assert len(left) == 3, "the last two, and the newest from before the decay"
    shutil.rmtree(two)
    code, output = job.run(
        "chat", f"model={uri}/runs/kept/export", "prompt=The red mill", "max_new_tokens=4",
        f"storage.root={uri}", f"storage.scratch={two}", cwd=root,
    )  # fmt: skip
    assert code == 0, output


@pytest.mark.slow
def test_a_pipeline_is_taken_up_on_another_machine(tmp_path: Path, uri: str) -> None:
    """All stages from pretraining to alignment: with the folder gone they are fetched, and nothing is trained
    or judged again."""
    test_pipeline.write_inputs(tmp_path)
    scratch = tmp_path / "scratch"
    command = (
        *test_pipeline.overrides(tmp_path),
        f"storage.root={uri}",
        f"storage.scratch={scratch}",
    )
    code, output = job.run_alone("pipeline", *command, cwd=tmp_path)
    assert code == 0, output
    judged = (scratch / "rankings" / "whole-rank" / "preferences.parquet").read_bytes()
    shutil.rmtree(scratch)
    code, output = job.run_alone("pipeline", *command, cwd=tmp_path)
    assert code == 0, output
    assert "Traceback" not in output and "Preparing" not in output
    for name in ("whole", "whole-sft", "whole-reward", "whole-rlhf"):
        assert f"run {name} is finished at step" in output
        assert len(job.events(scratch / "runs" / name, "attempt")) == 1
    assert (scratch / "rankings" / "whole-rank" / "preferences.parquet").read_bytes() == judged
    assert "registered models:/assistant/4 as assistant@aligned" in output
