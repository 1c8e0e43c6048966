"""MLflow may be down, hang or refuse: nothing waits for it, and nothing is lost or sent twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from checkpoint.test_commit import save
from data.prepared_factory import write_prepared
from raymill.checkpoint.resume import newest_verified
from raymill.checkpoint.retention import registered_checkpoints
from raymill.config import load
from raymill.engine.event_log import EventLog
from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import ConfigError, TrackingError
from raymill.schema.tree import digest, flatten
from raymill.storage.bucket import Bucket
from raymill.track import tracker as tracker_module
from raymill.track.follow import Follower
from raymill.track.forwarder import clamp_offset, metrics_of
from raymill.track.registry import resolve_model
from raymill.track.server import call, is_local, tracking_uri
from raymill.track.tracker import Tracker
from servers import free_port, hanging_server, mlflow_server, refusing_server

STEPS = 30


@pytest.fixture(autouse=True)
def _prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module, "FIRST_STEP_S", 0.0)
    monkeypatch.setattr(tracker_module, "MAX_BACK_OFF_S", 1.0)


def resolved_for(
    root: Path, uri: str | None, flush_timeout_s: float = 3.0, *more: str
) -> ResolvedRun:
    overrides = [
        "experiment=tiny", f"storage.root={root}", "run.name=r", "tracking.system_metrics=false",
        f"tracking.flush_timeout_s={flush_timeout_s}", *more,
    ]  # fmt: skip
    job = load("pretrain", overrides + ([f"tracking.uri={uri}"] if uri else []))
    prepared = write_prepared(root / "prepared")
    return ResolvedRun(
        job=job, run_dir=root / "runs" / "r", runs=root / "runs", folders=(prepared.folder,),
        weights=(1.0,), total_steps=STEPS, config=flatten(job), config_digest=digest(job),
        code_commit="c0ffee",
    )  # fmt: skip


def write_steps(resolved: ResolvedRun) -> None:
    event_log = EventLog(resolved.event_log)
    event_log.write("attempt", 0, total_steps=STEPS, messages=[], resumed=False)
    for step in range(1, STEPS + 1):
        event_log.write(
            "step", step, samples=8 * step, tokens=64 * step, **{"train/loss": 1 / step}
        )
    event_log.write("evaluation", STEPS, tokens=1, **{"eval/bits_per_byte": 2.0})


def track(resolved: ResolvedRun, status: str = "finished") -> float:
    """Run a tracker's whole life; return the seconds that its calls took."""
    began = time.monotonic()
    tracker = Tracker(resolved)
    tracker.start()
    started = time.monotonic() - began
    assert started < 2, "it waits for no server"
    tracker.close(status)
    return time.monotonic() - began


def history(resolved: ResolvedRun, uri: str) -> list[tuple[int, float]]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    run_id = json.loads((resolved.run_dir / "tracking.json").read_text())["run_id"]
    run = client.get_run(run_id)
    assert run.data.params["optim.learning_rate"] == "0.003"
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee"
    names = {given.dataset.name for given in run.inputs.dataset_inputs}
    assert names == {"tiny/train", "tiny/validation"}
    assert run.data.metrics["eval/bits_per_byte"] == 2.0
    return [(m.step, m.value) for m in client.get_metric_history(run_id, "train/loss")]


EXPECTED = [(step, 1 / step) for step in range(1, STEPS + 1)]


def test_sqlite_gets_everything_once_however_often_it_is_sent(tmp_path: Path) -> None:
    resolved = resolved_for(tmp_path, None, flush_timeout_s=60)
    write_steps(resolved)
    track(resolved)
    track(resolved)
    # As after a crash between sending and remembering: the same lines go out again.
    state = resolved.run_dir / "tracking.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"offset": 0}))
    track(resolved)
    assert history(resolved, f"sqlite:///{tmp_path / 'mlflow.db'}") == EXPECTED


def test_a_root_of_any_name_has_its_own_registry_below_it(tmp_path: Path) -> None:
    name = "-is it? %20 100%3F ü漢#&=,@[1];'q\""
    root = tmp_path / name
    resolved = resolved_for(root, None, flush_timeout_s=60)
    write_steps(resolved)
    export = root / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    save(resolved.checkpoints, 3)
    found = newest_verified(resolved.checkpoints)
    assert found is not None
    tracker = Tracker(resolved)
    tracker.start()
    reference, _, _ = tracker.register(found, export, {}).partition(" as ")
    tracker.close("finished")
    tracking = resolved.job.tracking
    assert is_local(tracking_uri(tracking, root))
    assert history(resolved, tracking_uri(tracking, root)) == EXPECTED
    model = resolve_model(reference, tracking, root)
    assert model.folder.is_relative_to(root / "mlartifacts")
    assert (model.folder / "config.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing is written elsewhere"
    assert (root / "mlflow.db").stat().st_size


def test_what_the_machines_say_is_sent_and_what_they_do_not_say_stops_nothing(
    tmp_path: Path,
) -> None:
    from mlflow import MlflowClient

    def failing() -> dict[str, float]:
        raise RuntimeError("a node is away")

    told = {"system/cpu_percent": 5.0, "system/host-2/gpu_0_percent": 90.0}
    resolved = resolved_for(tmp_path, None, 60, "tracking.system_metrics=true")
    write_steps(resolved)
    for readings in (failing, lambda: told):
        tracker = Tracker(resolved, readings)
        tracker.start()
        tracker.close("finished")
    run_id = json.loads((resolved.run_dir / "tracking.json").read_text())["run_id"]
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    sent = MlflowClient(uri).get_run(run_id).data.metrics
    assert {name: value for name, value in sent.items() if name.startswith("system/")} == told
    assert history(resolved, uri) == EXPECTED
    assert (
        "RuntimeError: a node is away" in (resolved.run_dir / "logs" / "tracking.log").read_text()
    )


def test_a_database_that_knows_nothing_of_the_run_gets_everything_anew(tmp_path: Path) -> None:
    """Continue as on another machine, with the first one's event log and its offset."""
    write_steps(resolved_for(tmp_path, None))
    export = tmp_path / "export"
    export.mkdir()
    for name in ("mlflow.db", "other.db"):
        uri = f"sqlite:///{tmp_path / name}"
        resolved = resolved_for(tmp_path, uri, flush_timeout_s=60)
        if name == "mlflow.db":
            save(resolved.checkpoints, 3)
        found = newest_verified(resolved.checkpoints)
        assert found is not None
        tracker = Tracker(resolved)
        tracker.start()
        assert "models:/assistant/1 as" in tracker.register(found, export, {})
        tracker.close("finished")
        assert history(resolved, uri) == EXPECTED


def test_a_note_that_is_ahead_of_its_journal_is_put_right(tmp_path: Path) -> None:
    resolved = resolved_for(tmp_path, None)
    write_steps(resolved)
    note = resolved.run_dir / "tracking.json"
    size = resolved.event_log.stat().st_size
    for offset, left in ((size, size), (size + 1, 0)):
        note.write_text(json.dumps({"run_id": "x", "offset": offset}))
        clamp_offset(resolved.run_dir, resolved.event_log)
        assert json.loads(note.read_text()) == {"run_id": "x", "offset": left}


def test_a_model_in_a_store_is_fetched_whole_and_kept_by_what_it_holds(
    uri: str, tmp_path: Path
) -> None:
    tracking = load("pretrain", ["tracking=none", f"storage.root={tmp_path}"]).tracking
    bucket = Bucket(f"{uri}/runs/base/export")
    with pytest.raises(ConfigError, match="there is no Hugging Face folder"):
        resolve_model(bucket.uri, tracking, tmp_path)
    bucket.put("config.json", b"{}")
    bucket.put("weights", b"old")
    Bucket(f"{uri}/runs/base").put("ledger/00000001.json", b"{}")
    with pytest.raises(ConfigError, match="isn't uploaded to the end"):
        resolve_model(bucket.uri, tracking, tmp_path, key="parent")
    bucket.put("raymill.json", b"{}")
    old = resolve_model(bucket.uri, tracking, tmp_path)
    assert resolve_model(bucket.uri, tracking, tmp_path).folder == old.folder
    bucket.put("weights", b"new")
    new = resolve_model(bucket.uri, tracking, tmp_path)
    assert (old.folder / "weights").read_bytes() == b"old", "whoever uses it goes on with it"
    assert (new.folder / "weights").read_bytes() == b"new"
    assert len(list((tmp_path / "models").iterdir())) == 2


@contextmanager
def nobody() -> Iterator[int]:
    yield free_port()


@pytest.mark.parametrize("server", [nobody, refusing_server, hanging_server])
def test_a_bad_server_costs_the_flush_timeout_and_nothing_else(
    tmp_path: Path, server: object, capsys: pytest.CaptureFixture[str]
) -> None:
    with server() as port:  # type: ignore[operator]
        resolved = resolved_for(tmp_path, f"http://127.0.0.1:{port}", flush_timeout_s=2)
        write_steps(resolved)
        assert track(resolved) < 20
        assert "nothing is lost" in capsys.readouterr().out
        tracker = Tracker(resolved)
        save(resolved.checkpoints, 1)
        found = newest_verified(resolved.checkpoints)
        assert found is not None
        with pytest.raises(TrackingError, match="can't be reached"):
            tracker.register(found, tmp_path, {})
        tracker.attach([tmp_path / "x"])


@pytest.mark.slow
def test_a_server_that_comes_back_gets_everything_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MLflow, which likes to print its address, doesn't print the password either."""
    port = free_port()
    uri = f"http://user:CANARY@127.0.0.1:{port}"
    resolved = resolved_for(tmp_path, uri, flush_timeout_s=90)
    write_steps(resolved)
    tracker = Tracker(resolved)
    tracker.start()
    time.sleep(2)
    with mlflow_server(tmp_path, port):
        tracker.close("finished")
        assert history(resolved, uri) == EXPECTED
    told = capsys.readouterr()
    assert f"tracked  http://127.0.0.1:{port}/#/experiments/1/runs/" in told.out
    assert "CANARY" not in told.out + told.err
    assert "CANARY" not in (resolved.run_dir / "logs" / "tracking.log").read_text()


def test_registration_is_once_a_checkpoint_and_resolves(tmp_path: Path) -> None:
    resolved = resolved_for(tmp_path, None, flush_timeout_s=60)
    write_steps(resolved)
    export = tmp_path / "export"
    export.mkdir()
    (export / "config.json").write_text("{}")
    tracker = Tracker(resolved)
    tracker.start()
    save(resolved.checkpoints, 3)
    found = newest_verified(resolved.checkpoints)
    assert found is not None
    name = tracker.register(found, export, {"eval/bits_per_byte": 2.0})
    assert name == "models:/assistant/1 as assistant@pretrained"
    assert tracker.register(found, export, {}) == name
    save(resolved.checkpoints, 4)
    newer = newest_verified(resolved.checkpoints)
    assert newer is not None
    (export / "config.json").write_text('{"newer": 1}')
    assert "models:/assistant/2" in tracker.register(newer, export, {})
    tracker.close("finished")
    newest = resolve_model("models:/assistant@pretrained", resolved.job.tracking, tmp_path)
    assert newest.name == "models:/assistant/2"
    first = resolve_model("models:/assistant/1", resolved.job.tracking, tmp_path)
    assert (first.folder / "config.json").read_text() == "{}", "a version never changes"
    assert [path.name for path in registered_checkpoints(resolved.run_dir)] == [
        "step-00000003", "step-00000004",
    ]  # fmt: skip
    for reference, message in (
        ("models:/assistant@nope", "there is: models:/assistant@pretrained"),
        ("models:/nothing/3", "the registry doesn't have it"),
        ("models:/a%2e@b", "expected models:/name@alias"),
        ("models:/a\n@b", "expected models:/name@alias"),
        (str(tmp_path / "nowhere"), "there is no Hugging Face folder"),
    ):
        with pytest.raises(ConfigError, match=message.replace("/", r"\/")):
            resolve_model(reference, resolved.job.tracking, tmp_path)


def test_tracking_none_does_nothing(tmp_path: Path) -> None:
    resolved = resolved_for(tmp_path, "none")
    write_steps(resolved)
    track(resolved)
    assert not (tmp_path / "mlflow.db").exists()
    with pytest.raises(ConfigError, match="no registry"):
        resolve_model("models:/a@b", resolved.job.tracking, tmp_path)


def test_following_waits_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert follower.read() == []
    path.write_bytes(b'{"a": 1}\n{"b"')
    assert follower.read() == [{"a": 1}]
    with path.open("ab") as stream:
        stream.write(b': 2}\n{"c": 3}\n')
    assert follower.read(limit=1) == [{"b": 2}]
    assert Follower(path, follower.offset).read() == [{"c": 3}]


def test_what_becomes_a_metric() -> None:
    event = {"kind": "step", "step": 3, "attempt": 1, "time": 9.0, "samples": 8, "tokens": 64,
             "train/loss": None, "perf/mfu": 0.5, "sample_ids_sha256": "x"}  # fmt: skip
    assert metrics_of(event) == {"train/samples": 8.0, "train/tokens": 64.0, "perf/mfu": 0.5}
    assert metrics_of({"kind": "attempt", "step": 0}) == {}


def test_errors_of_libraries_repeat_no_secrets() -> None:
    uri = "postgresql://user:SECRET/1@x@host/db"
    for text in (f"can't open {uri}", "could not translate host name SECRET", "1"):

        def fail(text: str = text) -> None:
            raise ValueError(text)

        with pytest.raises(TrackingError, match=r"^MLflow at postgresql://host/db: ") as found:
            call(fail, uri)
        assert "SECRET" not in str(found.value)
    assert str(found.value).endswith(": 1")
