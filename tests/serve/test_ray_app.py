"""The replicas of the API: options, versions, and how they follow an alias. Nothing starts Ray."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from generate.chat_factory import write_chat_folder
from raymill.config import load
from raymill.driver.serving import serve
from raymill.errors import ClusterError, ConfigError, DataError, RaymillError, TrackingError
from raymill.schema.serving import ServeJob
from raymill.serve import ray_app
from raymill.serve.keys import ApiKeys
from raymill.serve.ray_app import ServedVersions, build, exact_versions, follow, replica_options
from raymill.track.marker import write_marker


def job_of(*overrides: str) -> ServeJob:
    loaded = load("serve", ["serve.engine=ray", "tracking=none", *overrides])
    assert isinstance(loaded, ServeJob)
    return loaded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An exported model."""
    write_chat_folder(tmp_path / "model")
    write_marker(tmp_path / "model", {"run": "tiny"})
    return tmp_path / "model"


def test_options_of_replicas() -> None:
    options = replica_options(
        job_of("serve.replicas=2", "serve.slots=8", "serve.queue=4")
    ).deployment()
    assert options["num_replicas"] == 2
    assert options["ray_actor_options"] == {"num_cpus": 1, "num_gpus": 0}
    assert (options["max_ongoing_requests"], options["max_queued_requests"]) == (12, 4)
    assert options["graceful_shutdown_timeout_s"] > 600
    assert options["max_surge_percent"] == 50
    wanted = ("serve.max_replicas=3", "serve.slots=8", "serve.surge=false", "cluster=local_gpu")
    options = replica_options(job_of(*wanted)).deployment()
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (1, 3)
    assert scaling["target_ongoing_requests"] == 8
    assert options["ray_actor_options"]["num_gpus"] == 1
    assert options["max_surge_percent"] == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["serve.engine=local", "serve.replicas=2"], "serve.replicas: one process has none"),
        (["serve.engine=local", "serve.follow=true"], "serve.follow: one process has none"),
        (["serve.max_replicas=2"], "serve.max_replicas: set serve.slots"),
        (["serve.replicas=3", "serve.max_replicas=2", "serve.slots=4"], "serve.max_replicas=2"),
        (["port=0"], "port=0: Ray Serve takes a fixed port"),
        (["serve.tensor_parallel=2"], "only serve.decoder=vllm"),
        (["serve.decoder=vllm"], "serve.decoder=vllm: set serve.slots"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        job_of(*overrides)


def test_versions_are_exact_and_verified_once(folder: Path) -> None:
    job = job_of(f"model={folder}")
    versions = exact_versions(job)
    assert versions == (str(folder),)
    assert (
        build({"overrides": ["serve.engine=ray", "tracking=none", f"model={folder}"]}) is not None
    )
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"model\.safetensors is changed since the export"):
        exact_versions(job)
    assert exact_versions(job, known=versions) == versions


def test_it_follows_and_survives_what_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = threading.Event()
    looks: Iterator[RaymillError | tuple[str, ...]] = iter(
        [
            ("m/1",),
            TrackingError("nobody answers"),
            TrackingError("nobody answers"),
            ("m/2",),
            ("m/3",),
        ]
    )

    def look(_: ServeJob, known: tuple[str, ...] = ()) -> tuple[str, ...]:
        found = next(looks, None)
        if found is None:
            stopped.set()
            return known
        if isinstance(found, RaymillError):
            raise found
        return found

    rolled: list[tuple[str, ...]] = []

    def roll(served: ServedVersions) -> None:
        rolled.append(served.versions)
        if served.versions == ("m/2",):
            raise ClusterError("no replica of m/2 started: it is too large")

    monkeypatch.setattr(ray_app, "exact_versions", look)
    job = job_of("serve.follow=true", "serve.follow_every_s=0.001")
    served = follow(ServedVersions(job, ("m/1",), ApiKeys(())), stopped, roll)
    assert rolled == [("m/2",), ("m/3",)]
    assert served.versions == ("m/3",)
    assert capsys.readouterr().out.splitlines() == [
        "still serving m/1: nobody answers",
        "still serving m/1: no replica of m/2 started: it is too large",
        "now serving m/3",
    ]


def test_an_address_in_use_is_refused_before_ray_starts(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        job = job_of(f"model={folder}", f"port={taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match=f"port={job.port}"):
            serve(job)


@pytest.mark.slow
def test_it_follows_an_alias_of_the_registry_past_a_damaged_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.create_registered_model("tiny")
    for number in (1, 2, 3):
        folder = write_chat_folder(tmp_path / str(number))
        write_marker(folder, {"run": str(number)})
        client.create_model_version("tiny", str(folder))
    (tmp_path / "2" / "model.safetensors").write_bytes(b"damaged")
    client.set_registered_model_alias("tiny", "live", "1")
    overrides = ["model=models:/tiny@live", "serve.engine=ray", "serve.follow_every_s=0.05"]
    job = load("serve", [*overrides, f"storage.root={tmp_path}"])
    served = ServedVersions(job, exact_versions(job), ApiKeys(()))
    assert served.versions == ("models:/tiny/1",)

    stopped = threading.Event()
    client.set_registered_model_alias("tiny", "live", "2")
    move = threading.Timer(3, client.set_registered_model_alias, ("tiny", "live", "3"))
    move.start()
    served = follow(served, stopped, lambda _: stopped.set())
    move.join()
    assert served.versions == ("models:/tiny/3",)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("still serving models:/tiny/1: ")
    assert "model.safetensors is changed since the export" in first
    assert second == "now serving models:/tiny/3"
