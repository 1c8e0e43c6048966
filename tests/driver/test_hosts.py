"""Training on several hosts, each with its own network, name and Ray node: interfaces are found, and a run that
meets failing links and hosts is the run that never did."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from driver import job
from driver.conftest import Workshop
from driver.head import RAY
from driver.hosts import Hosts, hosts, join, start_cluster, why_not
from driver.job import ROOT
from driver.test_kills import check_attempts, found, history
from driver.test_storm import check_near

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]
STEPS, EVERY = 120, 10
LIMIT_S = 900.0  # of a wait, on a busy machine
COMMON = ("zero=stage3", "evaluation.every=0", "train.micro_batch=2", "checkpoint.keep_last=1000")


@pytest.fixture
def network() -> Iterator[Hosts]:
    if (reason := why_not()) is not None:
        print(f"\n{reason}")
        pytest.skip(reason)
    with hosts() as made:
        yield made


@dataclass
class Submitted:
    """Job that was submitted from a host, and what it has printed and written so far."""

    process: subprocess.Popen[bytes]
    printed: Path
    run_dir: Path

    def output(self) -> str:
        return self.printed.read_text(errors="replace").rpartition("Running entrypoint")[2]

    def wait_for(self, condition: Callable[[], bool], limit_s: float = LIMIT_S) -> float:
        """Wait until a condition holds; the seconds that it took."""
        began = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() - began < limit_s, self.output()
            time.sleep(0.05)
        return time.monotonic() - began

    def end(self) -> None:
        assert self.process.wait(LIMIT_S) == 0, self.output()
        assert "Traceback" not in self.output(), self.output()

    def attempts(self) -> list[dict[str, Any]]:
        return job.events(self.run_dir, "attempt")

    def steps(self) -> list[dict[str, Any]]:
        return job.events(self.run_dir, "step")

    def hosts(self) -> set[str]:
        return {rank["host"] for rank in self.attempts()[-1]["ranks"]}

    def steps_from_now(self, count: int) -> float:
        """Wait until so many steps were made from now on; the seconds that they took."""
        made = len(self.steps())
        return self.wait_for(lambda: len(self.steps()) >= made + count)

    def next_attempt(self) -> float:
        """Wait until another attempt has made a step; the seconds until then."""
        number = len(self.attempts()) + 1
        return self.wait_for(lambda: any(step["attempt"] >= number for step in self.steps()))


def submit(
    network: Hosts,
    address: str,
    workshop: Workshop,
    name: str,
    *settings: str,
    env_vars: dict[str, str] | None = None,
) -> Submitted:
    """Submit a run from the host without Ray."""
    desk, printed = network.made["desk"], workshop.root / f"{name}.txt"
    command = (
        *RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT),
        "--runtime-env-json", json.dumps({"env_vars": env_vars or {}}), "--",
        "python", "jobs/pretrain.py", *workshop.overrides, *COMMON, f"run.name={name}", *settings,
        "cluster=auto", "cluster.cpus_per_worker=2", f"storage.root={workshop.root / 'storage'}",
    )  # fmt: skip
    with printed.open("wb") as out:
        process = subprocess.Popen(
            desk.command(*command), env=desk.env, stdout=out, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    return Submitted(process, printed, workshop.run_dir(name))


@pytest.mark.slow
def test_a_group_forms_over_the_interface_of_the_node(network: Hosts) -> None:
    """Form it by IPv4 and IPv6. Torch would choose the address of the host's name, a loopback address."""
    for number, name in enumerate(("mill-1", "mill-2"), 1):
        host = network.add(name, number)
        host.run("ip", "-6", "address", "add", f"fd77::{number}/64", "dev", "eth0", "nodad")
    assert sums(network, "10.77.0.1", "10.77.0.{}") == ["sum 2", "sum 2"]
    assert sums(network, "fd77::1", "fd77::{}") == ["sum 2", "sum 2"]
    for host in network.made.values():
        host.run("ip", "address", "delete", f"{host.address}/24", "dev", "eth0")
    assert sums(network, "fd77::1", "fd77::{}") == ["sum 2", "sum 2"]
    assert sums(network, "fd77::1", limit_s=90) == ["", ""]


def sums(network: Hosts, store: str, *nodes: str, limit_s: float = 300) -> list[str]:
    """Return what each of two hosts prints (`gloo_alone.py`): nothing where the group doesn't form.

    Torch may keep trying for minutes after its own limit.
    """
    script = str(Path(__file__).with_name("gloo_alone.py"))
    ranks = [
        subprocess.Popen(
            host.command(sys.executable, script, str(rank), store, *(node.format(rank + 1) for node in nodes)),
            env=network.env | {"PYTHONPATH": str(ROOT / "platform")},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for rank, host in enumerate(network.made.values())
    ]  # fmt: skip
    printed = []
    deadline = time.monotonic() + limit_s
    for rank in ranks:
        try:
            printed.append(rank.communicate(timeout=deadline - time.monotonic())[0].strip())
        except subprocess.TimeoutExpired:
            rank.kill()
            printed.append(rank.communicate()[0].strip())
    return printed


@pytest.mark.slow
def test_a_run_on_two_hosts(network: Hosts, workshop: Workshop) -> None:
    """Submitted from a fourth host, without a word about interfaces: trained, exported and registered."""
    address = start_cluster(network, ("mill-1", "mill-2"))
    submitted = submit(network, address, workshop, "hosts", "run.workers=2", "train.steps=12")
    submitted.end()
    [attempt] = submitted.attempts()
    assert {rank["host"] for rank in attempt["ranks"]} == {"mill-1", "mill-2"}
    assert [rank["node_rank"] for rank in attempt["ranks"]] == [0, 1]
    for rank in attempt["ranks"]:
        assert (rank["local_rank"], rank["local_world_size"], rank["interface"]) == (0, 1, "eth0")
    assert json.loads((submitted.run_dir / "summary.json").read_text())["figures"]["steps"] == 12
    assert (submitted.run_dir / "export" / "model.safetensors").exists()
    assert "registered models:/" in submitted.output()


@pytest.mark.chaos
def test_links_and_hosts_that_fail(network: Hosts, workshop: Workshop) -> None:
    """Unnoticed: a link cut for seconds, little bandwidth, delay and loss. It costs an attempt: a link cut
    for good, a host removed, hosts that reach the head but not each other."""
    address = start_cluster(network, ("mill-1", "mill-2"), forwarded=("mill-2",))
    run = submit(
        network, address, workshop, "weather", "run.workers=2", f"train.steps={STEPS}", "tracking=none",
        f"checkpoint.every={EVERY}", "watchdog.timeout_s=30", "run.max_failures=30",
    )  # fmt: skip
    run.wait_for(lambda: len(run.steps()) >= 12)
    mill_2 = network.made["mill-2"]

    network.cut("mill-2")
    time.sleep(4)
    network.mend("mill-2")
    note(run, "a link cut for 4 s, from its mending", run.steps_from_now(5))
    network.limit("mill-2", "4mbit")
    note(run, "5 steps at 4 Mbit/s", run.steps_from_now(5))
    network.limit("mill-2", None)
    mill_2.worsen(delay_s=0.02, loss=0.02)
    note(run, "5 steps with 20 ms of delay and 2% of loss each way", run.steps_from_now(5))
    mill_2.worsen(delay_s=0.0, loss=0.0)
    note(run, "5 steps without", run.steps_from_now(5))
    assert len(run.attempts()) == 1, run.output()

    network.add("mill-3", 9)
    join(network, "mill-3")
    network.cut("mill-2")
    note(run, "a link cut for good, with a spare host", run.next_attempt())
    assert run.hosts() == {"mill-1", "mill-3"}
    assert "mill-2" in run.output()

    network.remove("mill-1")
    removed = time.monotonic()
    run.wait_for(lambda: "the cluster has room for 1 workers" in run.output())
    note(run, "a host removed, until the run waits for another", time.monotonic() - removed)
    network.add("mill-1", 2)
    join(network, "mill-1")
    note(run, "a host returned, from its joining", run.next_attempt())
    assert run.hosts() == {"mill-1", "mill-3"}

    # The watchdog gives the first steps of an attempt 20 minutes.
    run.steps_from_now(3)
    for name in ("mill-1", "mill-3"):
        network.isolate(name, True)
    apart = time.monotonic()
    run.wait_for(lambda: "can't reach rank" in run.output())
    note(run, "hosts that can't reach each other, until that is told", time.monotonic() - apart)
    for name in ("mill-1", "mill-3"):
        network.isolate(name, False)
    note(run, "from the mending", run.next_attempt())

    run.end()
    check_interface_that_leads_nowhere(network, address, workshop)
    check_attempts(run.run_dir, EVERY)
    assert found(run.run_dir) == calm(workshop), "bit-equal"


def check_interface_that_leads_nowhere(network: Hosts, address: str, workshop: Workshop) -> None:
    """A user's own choice wins; the run names hosts and addresses, tries twice, and ends."""
    run = submit(
        network, address, workshop, "aside", "run.workers=2", "tracking=none", "run.max_failures=1",
        env_vars={"GLOO_SOCKET_IFNAME": "lo"},
    )  # fmt: skip
    assert run.process.wait(LIMIT_S) != 0, run.output()
    assert "2 failures without a new checkpoint" in run.output()
    assert "Traceback" not in run.output()
    rank = r"rank \d on (mill-\d) \(10.77.0.\d\)"
    reason = rf"{rank}: can't reach {rank} at 127.0.0.1: .*refused"
    hosts = re.search(reason, run.output())
    assert hosts is not None and set(hosts.groups()) == {"mill-1", "mill-3"}, run.output()
    entered = [line["time"] for line in history(run.run_dir) if line["state"] == "starting"]
    print(f"\nbetween two attempts at a group that can't form: {entered[1] - entered[0]:.1f} s")


def note(run: Submitted, what: str, seconds: float) -> None:
    print(f"\n{what}: {seconds:.1f} s (step {run.steps()[-1]['step']})", flush=True)


@pytest.mark.chaos
def test_a_host_that_leaves_and_returns(network: Hosts, workshop: Workshop) -> None:
    """Two workers, one when a host is removed, two when it has returned: the same samples in each step."""
    address = start_cluster(network, ("mill-1", "mill-2"))
    run = submit(
        network, address, workshop, "returns", "run.workers=1..2", f"train.steps={STEPS}", "tracking=none",
        f"checkpoint.every={EVERY}",
    )  # fmt: skip
    run.wait_for(lambda: len(run.steps()) >= 12)
    network.remove("mill-2")
    note(run, "a host removed, until one worker goes on", run.next_attempt())
    assert run.hosts() == {"mill-1"}
    network.add("mill-2", 3)
    join(network, "mill-2")
    note(run, "a host returned, until two workers go on", run.next_attempt())
    assert run.hosts() == {"mill-1", "mill-2"}
    run.end()
    check_attempts(run.run_dir, EVERY)
    check_near(found(run.run_dir), calm(workshop))


def calm(workshop: Workshop) -> dict[int, tuple[float, float, str]]:
    """Steps of a run that met nothing, on this machine alone."""
    if not workshop.run_dir("calm").exists():
        code, output = job.run(
            "pretrain", *workshop.overrides, *COMMON, "run.name=calm", "run.workers=2",
            f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "tracking=none", cwd=workshop.root,
        )  # fmt: skip
        assert code == 0, output
    return found(workshop.run_dir("calm"))
