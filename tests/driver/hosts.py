"""Hosts on this machine: namespaces on a bridge, each with its own name, address, processes and Ray node.

All of them end with the process that made them, even if it is killed: namespaces and links live only as long
as a process in them. They share the file system, except Ray's session folder and /dev/shm, as hosts share a
volume.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from driver import job
from driver.head import RAY
from raymill.parent_death import die_with

NOT_SHOWN = "not shown: namespaces aren't permitted here"
SESSIONS = Path("/tmp/ray")
START_S = 180.0
_TOOLS = ("unshare", "nsenter", "ip", "bridge", "tc", "mount", "bash")
_NAMESPACES = (
    "--mount",
    "--uts",
    "--ipc",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
)
# As on Debian, the host's own name stands for a loopback address. The first process of a namespace must collect
# the processes that others leave.
_INIT = """
set -e
hostname {name}
ip link set lo up
mount -t tmpfs -o size=1g tmpfs {sessions}
mount -t tmpfs -o size=1g tmpfs /dev/shm
printf '127.0.0.1 localhost\\n127.0.1.1 {name}\\n' > {sessions}/names
mount --bind {sessions}/names /etc/hosts
echo ready
while :; do sleep 3600 & wait $!; done
"""


def why_not() -> str | None:
    """Return why there can be no hosts here; None if there can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"{NOT_SHOWN}: {', '.join(missing)} missing"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return f"{NOT_SHOWN}: no /dev/net/tun"
    make = "mount -t tmpfs tmpfs /mnt && ip link add bridge0 type bridge && ip tuntap add tap0 mode tap"
    done = subprocess.run(
        ["unshare", *_NAMESPACES, "bash", "-c", make], capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else f"{NOT_SHOWN}: {done.stderr.strip()}"


def _in_namespaces(script: str) -> tuple[subprocess.Popen[str], int]:
    """Run a script in namespaces of its own; (the process that ends them, the script's process) once it says
    that it is ready."""
    process = subprocess.Popen(
        ["unshare", *_NAMESPACES, "bash", "-c", script], stdout=subprocess.PIPE, text=True,
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=partial(die_with, os.getpid()),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", "the namespaces weren't made"
    [first] = psutil.Process(process.pid).children()
    return process, first.pid


@dataclass
class Host:
    """One of them. `forwarder` stands between it and the bridge, if there is one."""

    name: str
    address: str
    process: subprocess.Popen[str]
    first: int  # the process with number 1 in its namespace, as seen from outside
    env: dict[str, str]
    forwarder: subprocess.Popen[str] | None = None

    def command(self, *command: str) -> list[str]:
        """A command that runs another one in the host."""
        enter = (
            "nsenter",
            "--target",
            str(self.first),
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
        )
        return [*enter, "--", *command]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; what it printed."""
        done = subprocess.run(
            self.command(*command), env=self.env, capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def ray_start(self, *arguments: str) -> None:
        """Start a Ray node with the host's address."""
        self.run(
            *RAY, "start", "--node-ip-address", self.address, "--disable-usage-stats",
            "--object-store-memory", "100000000", *arguments,
        )  # fmt: skip

    def worsen(self, **conditions: float) -> None:
        """Set conditions of the host's frames (`forwarder.py`)."""
        assert self.forwarder is not None and self.forwarder.stdin is not None, "has no forwarder"
        self.forwarder.stdin.write(json.dumps(conditions) + "\n")
        self.forwarder.stdin.flush()

    def end(self) -> None:
        """Kill all its processes; its session folder goes with them."""
        for process in (self.process, self.forwarder):
            if process is not None:
                process.kill()
                process.wait()


@dataclass
class Hosts:
    """Hosts on one bridge. The first holds Ray's head; `env` is of all processes in them."""

    switch: subprocess.Popen[str]
    switch_first: int
    env: dict[str, str]
    made: dict[str, Host] = field(default_factory=dict)

    def add(self, name: str, number: int, forwarded: bool = False) -> Host:
        """Make a host with the address 10.77.0.<number>, or make it again after it was removed."""
        script = _INIT.format(name=name, sessions=SESSIONS)
        process, first = _in_namespaces(script)
        host = Host(name, f"10.77.0.{number}", process, first, self.env)
        port = f"to-{name}"
        if forwarded:
            host.forwarder = self._forwarder(f"from-{name}", port)
            self.ip("link", "set", f"from-{name}", "netns", str(first), "name", "eth0")
        else:
            self.ip(
                "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(first)
            )
        self.ip("link", "set", port, "master", "bridge", "up")
        # An interface that comes first and leads nowhere.
        host.run("ip", "link", "add", "aside0", "type", "bridge")
        host.run("ip", "address", "add", f"192.168.{number}.1/24", "dev", "aside0")
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        for interface in ("aside0", "eth0"):
            host.run("ip", "link", "set", interface, "up")
        self.made[name] = host
        return host

    def ip(self, *arguments: str) -> None:
        """Run `ip` where the bridge is."""
        self._in_switch("ip", *arguments)

    def remove(self, name: str) -> None:
        """Take a host away without a word: its link and all its processes."""
        self.cut(name)
        host = self.made.pop(name)
        host.end()
        # A namespace is dissolved some time after its last process; a TAP device goes with its forwarder.
        if host.forwarder is None:
            self.ip("link", "delete", f"to-{name}")

    def cut(self, name: str) -> None:
        """Cut the host's link: at both ends there is no carrier."""
        self.ip("link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        self.ip("link", "set", f"to-{name}", "up")

    def isolate(self, name: str, isolated: bool) -> None:
        """Let the host reach only hosts that aren't isolated, or all again."""
        self._in_switch(
            "bridge", "link", "set", "dev", f"to-{name}", "isolated", "on" if isolated else "off"
        )

    def limit(self, name: str, rate: str | None) -> None:
        """Limit the bandwidth of what the host sends and receives (`tc tbf`), as in 10mbit; None ends that."""
        bucket = ("root", "tbf", "rate", str(rate), "burst", "32kbit", "latency", "400ms")
        change = ("add", "dev") if rate else ("del", "dev")
        self._in_switch("tc", "qdisc", *change, f"to-{name}", *(bucket if rate else ("root",)))
        self.made[name].run("tc", "qdisc", *change, "eth0", *(bucket if rate else ("root",)))

    def _forwarder(self, first: str, second: str) -> subprocess.Popen[str]:
        script = str(Path(__file__).with_name("forwarder.py"))
        forwarder = subprocess.Popen(
            self._enter_switch(sys.executable, script, first, second), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, preexec_fn=partial(die_with, os.getpid()),
        )  # fmt: skip
        assert forwarder.stdout is not None
        assert forwarder.stdout.readline() == "ready\n", "the forwarder didn't start"
        return forwarder

    def _in_switch(self, *command: str) -> None:
        done = subprocess.run(
            self._enter_switch(*command), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"

    def _enter_switch(self, *command: str) -> Sequence[str]:
        return ["nsenter", "--target", str(self.switch_first), "--net", "--", *command]


@contextmanager
def hosts() -> Iterator[Hosts]:
    """Make a bridge, to which hosts can be added; all are removed in the end."""
    SESSIONS.mkdir(exist_ok=True)
    env = job.environment() | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray's default makes workers wait for everything else on a busy machine.
        "RAY_worker_niceness": "0",
        # Each node's agent would otherwise look at all processes every few seconds.
        "REPORTER_UPDATE_INTERVAL_MS": "60000",
        # The head takes a node for lost after five checks, so in half a minute instead of one.
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_period_ms": "1000",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    switch, first = _in_namespaces(
        "ip link add bridge type bridge && ip link set bridge up && echo ready && exec sleep infinity"
    )
    found = Hosts(switch, first, env)
    try:
        yield found
    finally:
        for host in found.made.values():
            host.end()
        switch.kill()
        switch.wait()


def start_cluster(found: Hosts, workers: Sequence[str], forwarded: Sequence[str] = ()) -> str:
    """Start a head on a first host, a node with two CPUs on each of `workers`, and a last host without Ray.

    Return the address of the jobs API.
    """
    head = found.add("head", 1)
    for number, name in enumerate((*workers, "desk"), 2):
        found.add(name, number, name in forwarded)
    head.ray_start("--head", "--num-cpus", "1", "--dashboard-host", head.address)
    for name in workers:
        join(found, name)
    address = f"http://{head.address}:8265"
    deadline = time.monotonic() + START_S
    while found.made["desk"].run(*RAY, "job", "list", "--address", address, check=False).returncode:
        assert time.monotonic() < deadline, "Ray's dashboard didn't come up"
    return address


def join(found: Hosts, name: str) -> None:
    """Start a Ray node with two CPUs on a host."""
    found.made[name].ray_start("--address", f"{found.made['head'].address}:6379", "--num-cpus", "2")
