"""`ray job submit` to a head with token authentication: the submitted tree runs, whatever is installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import job
from cluster.head import Head, ray_head, status_of
from cluster.job import ROOT

pytestmark = pytest.mark.integration

PROBE = """
import json, platform, sys
sys.path.insert(0, "platform")
import raymill
from raymill.cluster.session import connect
from raymill.config.schema import ClusterConfig

with connect(ClusterConfig("auto", "auto")):
    import ray

    @ray.remote
    def look():
        import platform, raymill
        return raymill.__version__, platform.__file__

    print("PROBE " + json.dumps([raymill.__version__, platform.__file__, *ray.get(look.remote())]))
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(cpus=3) as started:
        yield started


def test_without_the_token_nothing_gets_in(head: Head) -> None:
    assert status_of(head.address, None) == 401
    assert status_of(head.address, "wrong") == 403
    assert status_of(head.address, head.token) == 200


def test_the_submitted_tree_wins_and_platform_is_the_standard_librarys(
    head: Head, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "platform", tmp_path / "platform")
    (tmp_path / "probe.py").write_text(PROBE)
    code, output = head.submit(tmp_path, "python", "probe.py")
    assert code == 0, output
    line = next(line for line in output.splitlines() if "PROBE " in line)
    ours, driver_platform, theirs, worker_platform = json.loads(line.split("PROBE ")[1])
    import raymill

    assert ours == theirs == raymill.__version__, "not the older copy on PYTHONPATH"
    assert driver_platform.endswith("/platform.py")
    assert worker_platform == driver_platform


def test_a_relative_storage_root_is_refused(head: Head) -> None:
    code, output = head.submit(ROOT, "python", "jobs/pretrain.py", "experiment=tiny")
    assert code != 0
    assert "inside a submitted job a relative path would vanish" in output


def test_a_model_is_trained_by_a_submitted_job(head: Head, tmp_path: Path) -> None:
    job.write_corpus(tmp_path / "texts")
    overrides = (
        "experiment=tiny", "data=files", f"data.path={tmp_path / 'texts'}", "tokenizer.vocab_size=300",
        "data.sequence_length=64", "data.validation.fraction=0.2", "cluster=auto", "run.workers=2",
        "train.micro_batch=2", "run.name=submitted", f"storage.root={tmp_path / 'storage'}",
        "tracking=none",
    )  # fmt: skip
    code, output = head.submit(ROOT, "python", "jobs/prepare.py", *overrides)
    assert code == 0, output
    code, output = head.submit(ROOT, "python", "jobs/pretrain.py", *overrides)
    assert code == 0, output
    run_dir = tmp_path / "storage" / "runs" / "submitted"
    assert json.loads((run_dir / "summary.json").read_text())["figures"]["steps"] == 12
    assert (run_dir / "export" / "model.safetensors").exists()
    assert job.events(run_dir, "attempt")[0]["world_size"] == 2
