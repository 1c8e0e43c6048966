"""Passwords and tokens of a run's addresses are in nothing that it leaves, prints or sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from driver import job
from engine.alignment_probe import write_parent, write_prompts
from raymill.track import tracker
from rl.reward.service import Service
from servers import refusing_server

pytestmark = pytest.mark.integration
CANARY = "CANARY"


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_no_secret_is_left_printed_or_sent(
    ray_session: None, tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose tracking server needs a password and whose reward service a token, first with the server
    failing, then with a database instead."""
    monkeypatch.setattr(tracker, "FIRST_STEP_S", 0.0)
    write_parent(tmp_path / "parent", hidden=32)
    records = [{"prompt": f"say {n}"} for n in range(20)]
    write_prompts(tmp_path / "prompts.jsonl", records)
    reward = f"http://127.0.0.1:{service.server_port}/length?token={CANARY}-1"
    overrides = (
        f"parent={tmp_path / 'parent'}", f"data.path={tmp_path / 'prompts.jsonl'}", "run.name=r",
        "data.sequence_length=48", "data.row_group_rows=4", "data.validation.fraction=0.2",
        "reward.functions={}", f"reward.functions.{reward}=1.0", "rollout.max_new_tokens=4",
        "rollout.actors=0", "evaluation.every=0", "rollout.group_size=2",
        "rollout.batch=8", "train.global_batch=4", "train.micro_batch=8", "train.threads=1", "train.steps=1",
        "schedule.warmup_steps=0", "evaluation.rows=4", f"rollout.save_to={tmp_path / 'dump'}",
        "tracking.flush_timeout_s=1",
    )  # fmt: skip
    with refusing_server() as port:
        uri = f"http://user:{CANARY}/3@{CANARY}4@127.0.0.1:{port}"
        code, output = job.run("rlhf", *overrides, f"tracking.uri={uri}", cwd=tmp_path)
        assert code == 0, output
        assert "MLflow at http://127.0.0.1" in output
    database = "tracking.uri=sqlite:///" + str(tmp_path / "storage" / "other.db")
    code, again = job.run("rlhf", *overrides, database, "tracking.flush_timeout_s=60", cwd=tmp_path)
    assert code == 0, again
    assert "registered models:/assistant/1" in again
    assert service.attempts[f"length?token={CANARY}-1"], "the service was asked with its token"
    assert CANARY not in output + again
    run_dir = tmp_path / "storage" / "runs" / "r"
    for name in (
        "config.yaml",
        "summary.json",
        "report.html",
        "metrics.jsonl",
        "logs/tracking.log",
    ):
        assert (run_dir / name).exists()
    for place in (tmp_path, Path(ray._private.worker._global_node.get_session_dir_path())):
        found = [
            path
            for path in place.rglob("*")
            if path.is_file() and CANARY.encode() in path.read_bytes()
        ]
        assert not found
    parameters = mlflow_parameters(run_dir, database.partition("=")[2])
    assert (
        parameters[f"reward.functions.http_127.0.0.1:{service.server_port}/length_token_"] == "1.0"
    )


def mlflow_parameters(run_dir: Path, uri: str) -> dict[str, str]:
    from mlflow import MlflowClient

    run_id = json.loads((run_dir / "tracking.json").read_text())["run_id"]
    return dict(MlflowClient(uri).get_run(run_id).data.params)
