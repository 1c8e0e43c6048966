"""Metrics of a run's machines, with simulated GPUs and simulated nodes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private.thirdparty import pynvml

from driver import job
from raymill.driver import system_metrics as readings
from raymill.driver.system_metrics import MOST_NAMED, SystemMetrics, machine_readings, summary
from track.test_tracker import resolved_for

GIB = 2**30


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two, of which the second is a part of one, which doesn't tell how busy it is."""

    def told(value: Callable[[int], Any]) -> Callable[[int], Any]:
        def tell(device: int) -> Any:
            if device:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return value(device)

        return tell

    fakes: dict[str, Callable[..., Any]] = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda number: number,
        "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(
            used=(device + 1) * GIB, total=8 * GIB
        ),
        "nvmlDeviceGetUtilizationRates": told(lambda device: SimpleNamespace(gpu=75, memory=10)),
        "nvmlDeviceGetPowerUsage": told(lambda device: 350_000),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(pynvml, name, fake)
    readings._nvml.cache_clear()
    yield
    readings._nvml.cache_clear()


def test_gpus_are_read(gpus: None) -> None:
    found = machine_readings()
    assert {name: value for name, value in found.items() if name.startswith("gpu")} == {
        "gpu_0_percent": 75, "gpu_0_watts": 350.0, "gpu_0_memory_used_gib": 1.0, "gpu_0_memory_percent": 12.5,
        "gpu_1_memory_used_gib": 2.0, "gpu_1_memory_percent": 25.0,
    }  # fmt: skip
    assert {"cpu_percent", "memory_used_gib", "memory_percent"} <= set(found)


def test_a_machine_without_gpus_has_the_rest() -> None:
    assert set(machine_readings()) == {"cpu_percent", "memory_used_gib", "memory_percent"}


def test_of_many_nodes_the_spread_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    many = {
        f"n{n}": {"cpu_percent": float(n), f"gpu_{n % 2}_percent": 10.0 * n}
        for n in range(MOST_NAMED + 1)
    }
    told = SystemMetrics(resolved_for(tmp_path, "none"))
    monkeypatch.setattr(told, "_others", lambda: many)
    found = told()
    assert found["system/others/cpu_percent/most"] == MOST_NAMED
    assert found["system/others/gpu_percent/mean"] == 5.0 * MOST_NAMED
    assert "system/n0/cpu_percent" not in found
    del many["n0"]
    assert told()["system/n1/gpu_1_percent"] == 10.0
    assert summary([{"a": 1.0}, {"a": 3.0}]) == {"a/least": 1.0, "a/mean": 2.0, "a/most": 3.0}


@pytest.mark.slow
@pytest.mark.integration
def test_nodes_of_the_run_are_read_and_no_others(tmp_path: Path) -> None:
    """Run in a process of its own, since a process is connected to one cluster at a time."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        env=job.environment() | {"PYTHONPATH": f"{job.ROOT / 'platform'}:{job.ROOT / 'tests'}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    first, second, third = found["ids"]
    assert found["driver's node only"] == [""]
    assert found["both"] == ["", "host", f"host-{second[:6]}"]
    assert found["after a loss"] == ["", "host"]
    assert found["after a new attempt"] == ["", "host", "other"]
    assert found["readers' nodes"] == sorted([first, third])
    assert found["left"] == []


def main(folder: Path) -> None:
    """A head and three nodes, on which a run's attempts are said to be."""
    import os

    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray
    from ray.cluster_utils import Cluster
    from ray.util.state import list_actors

    from raymill.engine.event_log import EventLog

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]
    ray.init(address=cluster.address, log_to_driver=False)
    ids = [node.node_id for node in nodes]
    own = ray.get_runtime_context().get_node_id()
    resolved = resolved_for(folder, "none")
    told = SystemMetrics(resolved)
    event_log = EventLog(resolved.event_log)

    def attempt(*ranks: tuple[str, str]) -> None:
        event_log.write(
            "attempt", 0, ranks=[{"node": node, "host": host, "pid": 1} for node, host in ranks]
        )

    def places() -> list[str]:
        names = [name.removeprefix("system/") for name in told() if name.endswith("memory_percent")]
        return sorted(name.removesuffix("memory_percent").rstrip("/") for name in names)

    found: dict[str, Any] = {"ids": ids, "driver's node only": places()}
    attempt((own, "head"), (own, "head"), (ids[0], "host"), (ids[1], "host"))
    found["both"] = places()
    cluster.remove_node(nodes[1], allow_graceful=False)
    # Its processes notice a while after it is gone.
    deadline = time.monotonic() + 60
    while len(places()) == 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    found["after a loss"] = places()
    attempt((own, "head"), (ids[0], "host"), (ids[2], "other"))
    found["after a new attempt"] = places()
    alive = [actor for actor in list_actors() if actor.state == "ALIVE"]
    found["readers' nodes"] = sorted(str(actor.node_id) for actor in alive)
    told.close()
    told.close()
    found["left"] = [actor.actor_id for actor in list_actors() if actor.state == "ALIVE"]
    ray.shutdown()
    cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
