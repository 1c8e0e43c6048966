"""A forked process is like one that an interpreter was started for, and ends with whatever it should end with.

Nothing here starts Ray. Servers belong to drivers in processes of their own, since they live as long.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from raymill.cluster.forked_process import without_setup

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 15.0
DRIVER = """
import sys, time
from raymill.cluster import local_ray
print(local_ray.fork_server(*sys.argv[1:]), local_ray._Launcher.server.pid, flush=True)
time.sleep(600)
"""
# What a script says of the process that it runs in.
REPORT = """
import json, os, resource, sys
print(json.dumps({
    "arguments": sys.argv, "variable": os.environ.get("MINE"), "inherited": os.environ.get("THE_DRIVERS"),
    "folder": os.getcwd(), "name": __name__, "file": globals().get("__file__"), "path": sys.path,
    "parent": os.getppid(),
    "modules": [name for name in ("numpy", "colorsys", "wave") if name in sys.modules],
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "niceness": os.getpriority(os.PRIO_PROCESS, 0), "cores": sorted(os.sched_getaffinity(0)),
    "unused": sys.modules.get("mlflow", "absent"), "input": sys.stdin.read(),
}))
"""
WAIT = "import os, sys, time\nprint(os.getpid())\ntime.sleep(600)\n"


@dataclass(frozen=True)
class Served:
    launcher: str
    server: psutil.Process
    driver: psutil.Process
    folder: Path

    def script(self, text: str) -> str:
        path = self.folder / f"{len(list(self.folder.iterdir()))}.py"
        path.write_text(text)
        return str(path)

    def run(self, text: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.launcher, "-u", self.script(text), *arguments],
            capture_output=True, text=True, timeout=60, check=False, **{"input": "", **options},
        )  # fmt: skip

    def wait_in_script(self, node: int = 0) -> tuple[subprocess.Popen[str], psutil.Process]:
        """The launcher and the fork of a script that sleeps."""
        process = subprocess.Popen(
            [self.launcher, self.script(WAIT)],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"RAY_RAYLET_PID": str(node)},
        )  # fmt: skip
        assert process.stdout is not None
        fork = psutil.Process(int(process.stdout.readline()))
        assert fork.ppid() == self.server.pid, "it was not forked"
        return process, fork

    def wait_for_import(self, name: str) -> None:
        """Wait until forks have a module; the server forks while it is importing."""
        text = f"import sys; print({name!r} in sys.modules)"
        until(lambda: self.run(text).stdout == "True\n", f"no {name}")

    def log(self) -> str:
        return Path(self.launcher).with_name("log").read_text()


@contextmanager
def serve(folder: Path, *modules: str, **variables: str) -> Iterator[Served]:
    """A server of some modules, with a driver that does nothing else."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, *modules],
        stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "platform"), "THE_DRIVERS": "1"} | variables,
    )  # fmt: skip
    try:
        assert driver.stdout is not None
        launcher, server = driver.stdout.readline().split()
        yield Served(launcher, psutil.Process(int(server)), psutil.Process(driver.pid), folder)
    finally:
        driver.kill()
        driver.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("scripts"), "numpy", "colorsys") as one:
        one.wait_for_import("colorsys")
        yield one


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Served]:
    """A server that a test may kill."""
    with serve(tmp_path, "colorsys") as one:
        yield one


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def is_gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_fork_is_like_a_new_interpreter(served: Served, tmp_path: Path) -> None:
    environment = {"MINE": "ü=\udcff", "PATH": os.environ["PATH"], "PYTHONPATH": "here:/nowhere"}
    given: dict[str, Any] = {"cwd": tmp_path, "env": environment, "input": "typed"}
    script = served.script(REPORT)
    first = served.run(REPORT, "one", "--two=ü", **given)
    report = json.loads(first.stdout)
    fresh = subprocess.run(
        [sys.executable, script, "one", "--two=ü"],
        capture_output=True, text=True, check=True, **given,
    )  # fmt: skip
    expected = json.loads(fresh.stdout)
    assert report["parent"] == served.server.pid
    # An interpreter leaves out what isn't there; what imports of ours have added comes last.
    for name in ("variable", "inherited", "folder", "name", "descriptors", "input"):
        assert report[name] == expected[name], name
    assert report["arguments"][1:] == expected["arguments"][1:]
    assert report["file"] == report["arguments"][0]
    assert report["path"][: len(expected["path"])] == expected["path"]
    assert str(ROOT / "platform") not in report["path"], "the server's own PYTHONPATH"
    assert expected["modules"] == []
    assert report["modules"] == ["numpy", "colorsys"], "what the server has imported, and no more"
    assert report["unused"] == "absent"


def test_a_fork_has_the_launchers_limits_priority_and_cores(served: Served) -> None:
    core = min(os.sched_getaffinity(0))
    command = f'ulimit -n 200; nice -n 3 taskset -c {core} "$@"'
    done = subprocess.run(
        ["bash", "-c", command, "bash", served.launcher, served.script(REPORT)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["parent"] == served.server.pid
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert (report["files"], report["niceness"], report["cores"]) == (200, mine + 3, [core])


def test_output_is_not_held_back(served: Served) -> None:
    process, fork = served.wait_in_script()  # its number arrives while it sleeps
    process.kill()
    until(lambda: is_gone(fork), "the fork outlives its launcher")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import sys; sys.exit('why')", 1),
        ("import os; os._exit(255)", 255),
        ("raise KeyError('why')", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("import os; os.kill(os.getpid(), 15)", -signal.SIGTERM),
        ("import os; os.abort()", -signal.SIGABRT),
    ],
)
def test_it_ends_as_its_fork_ends(served: Served, text: str, code: int) -> None:
    done = served.run(text)
    assert done.returncode == code
    assert ("why" in text) == ("why" in done.stderr)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_launcher_takes_its_fork_along(served: Served, stopped: bool) -> None:
    process, fork = served.wait_in_script()
    other, spared = served.wait_in_script()
    if stopped:
        fork.suspend()
    process.kill()
    until(lambda: is_gone(fork), "the fork outlives its launcher")
    assert not is_gone(spared)
    other.kill()


def test_forks_end_with_their_node_and_no_other(served: Served) -> None:
    nodes = [subprocess.Popen(["sleep", "600"]) for _ in range(2)]
    ours, stopped = (served.wait_in_script(nodes[0].pid) for _ in range(2))
    others, none = served.wait_in_script(nodes[1].pid), served.wait_in_script()
    stopped[1].suspend()
    nodes[0].kill()
    for process, fork in (ours, stopped):
        until(lambda fork=fork: is_gone(fork), "the fork outlives its node")
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
    assert not is_gone(others[1]) and not is_gone(none[1])
    # A launcher of a node that is gone by then gets a fork that is killed at once.
    nodes[0].wait()
    late = served.run("import time; time.sleep(600)", env={"RAY_RAYLET_PID": str(nodes[0].pid)})
    assert late.returncode == -signal.SIGKILL
    for process in (others[0], none[0], nodes[1]):
        process.kill()


def test_a_killed_server_ends_forks_and_launchers(own: Served) -> None:
    (first, fork), (second, stopped) = own.wait_in_script(), own.wait_in_script()
    stopped.suspend()
    own.server.kill()
    for process, one in ((first, fork), (second, stopped)):
        assert process.wait(PATIENCE_S) == 1
        until(lambda one=one: is_gone(one), "the fork outlives the server")
    report = json.loads(own.run(REPORT).stdout)
    assert report["parent"] not in (own.server.pid, 1)
    assert report["modules"] == [], "nobody forks: Python itself runs"


@pytest.mark.parametrize("stopped", [False, True])
def test_all_ends_with_the_driver(own: Served, stopped: bool) -> None:
    process, fork = own.wait_in_script()
    if stopped:
        own.server.suspend()
        fork.suspend()
    own.driver.kill()
    until(lambda: is_gone(own.server), "the server outlives the driver")
    until(lambda: is_gone(fork), "the fork outlives the driver")
    assert process.wait(PATIENCE_S) == 1


def test_options_and_commands_are_for_python_itself(served: Served) -> None:
    script = served.script(REPORT)
    for command in (["-c", REPORT], ["-B", script], ["-u", "-B", script]):
        done = subprocess.run(
            [served.launcher, *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert json.loads(done.stdout)["modules"] == []


def test_a_module_that_starts_a_thread_ends_the_forking(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "early.py").write_text("")
    (modules / "threaded.py").write_text(
        f"import os, threading, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    (tmp_path / "go").touch()
    with serve(
        scripts, "early", "threaded", "wave", PYTHONPATH=f"{modules}:{ROOT}/platform"
    ) as one:
        until(lambda: is_gone(one.server), "a server with a thread goes on")
        assert "importing threaded started a thread" in one.log()
        assert json.loads(one.run(REPORT).stdout)["modules"] == [], "Python itself runs"


def test_forks_outlive_the_end_of_the_forking(tmp_path: Path) -> None:
    modules, scripts = tmp_path / "modules", tmp_path / "scripts"
    modules.mkdir()
    scripts.mkdir()
    # Forks are made between imports; the second import waits until there was one.
    (modules / "early.py").write_text(
        f"import time\nwhile not __import__('os').path.exists({str(tmp_path / 'go')!r}): time.sleep(0.01)\n"
    )
    (modules / "ray.py").write_text("")
    with serve(scripts, "early", "ray", PYTHONPATH=f"{modules}:{ROOT}/platform") as one:
        process = subprocess.Popen(
            [one.launcher, one.script(WAIT)], stdout=subprocess.PIPE, text=True
        )
        time.sleep(0.3)  # it connects while `early` is imported
        (tmp_path / "go").touch()
        assert process.stdout is not None
        fork = psutil.Process(int(process.stdout.readline()))
        until(lambda: "importing ray" in one.log(), "a server with Ray goes on")
        assert json.loads(one.run(REPORT).stdout)["parent"] != one.server.pid
        assert not is_gone(fork) and not is_gone(one.server)
        process.kill()
        until(lambda: is_gone(fork) and is_gone(one.server), "nothing is left to serve")


def test_a_module_that_is_missing_or_fails_is_left_out(tmp_path: Path) -> None:
    modules, scripts = tmp_path / "modules", tmp_path / "scripts"
    modules.mkdir()
    scripts.mkdir()
    (modules / "failing.py").write_text("raise RuntimeError('at its import')\n")
    names = ("not_installed", "json:no_such_name", "failing", "colorsys")
    with serve(scripts, *names, PYTHONPATH=f"{modules}:{ROOT}/platform") as one:
        one.wait_for_import("colorsys")
        assert "RuntimeError: at its import" in one.log()


def test_forks_draw_different_numbers(served: Served) -> None:
    text = "import numpy, random, uuid\nprint(numpy.random.rand(), random.random(), uuid.uuid4())"
    first, second = (served.run(text).stdout.split() for _ in range(2))
    assert len(first) == 3
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_nothing_of_a_fork_stays_with_the_server(served: Served) -> None:
    before = served.server.num_fds()
    for _ in range(5):
        served.run("pass")
        process, _ = served.wait_in_script()
        process.kill()
    until(lambda: served.server.num_fds() == before, "the server keeps descriptors")
    assert served.server.children() == []


def test_many_at_once(served: Served) -> None:
    script = served.script("import sys; print(sys.argv[1]); sys.exit(int(sys.argv[1]))")
    started = [
        subprocess.Popen([served.launcher, script, str(n)], stdout=subprocess.PIPE, text=True)
        for n in range(40)
    ]
    for killed in started[::4]:
        killed.kill()
    for number, process in enumerate(started):
        output, _ = process.communicate(timeout=PATIENCE_S)
        if number % 4:
            assert (output, process.returncode) == (f"{number}\n", number)
    until(lambda: served.server.children() == [], "the server keeps children")


def test_a_runtime_environment_is_set_up_as_ray_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.runtime_env import context as rays

    asked = {"ONE": "1", "TWO": "${ONE}/$HOME", "PATH": "/first:${PATH}", "THREE": "$NONE"}
    context = rays.RuntimeEnvContext(env_vars=asked)
    command = ["/ray/default_worker.py", "--node-ip-address=127.0.0.1", "--startup-token=3"]
    # In the order in which Ray gives them.
    given = ["/ray/setup_worker.py", *command]
    given += [f"--serialized-runtime-env-context={context.serialize()}", "--language=PYTHON"]
    before = dict(os.environ)

    executed: list[str] = []
    monkeypatch.setattr(rays.os, "execvp", lambda _, args: executed.append(args[-1]))
    context.exec_worker(list(command), rays.Language.Value("PYTHON"))
    expected = dict(os.environ)
    assert executed == [" ".join(["exec", sys.executable, *command])]

    os.environ.clear()
    os.environ.update(before)
    try:
        assert without_setup(given) == command
        assert dict(os.environ) == expected
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.mark.parametrize(
    "asked",
    [
        {"py_executable": "/other/python"},
        {"command_prefix": ["nice"]},
        {"override_worker_entrypoint": "/other.py"},
    ],
)
def test_what_else_a_runtime_environment_wants_is_rays_affair(asked: dict[str, Any]) -> None:
    from ray._private.runtime_env.context import RuntimeEnvContext

    text = RuntimeEnvContext(**asked, env_vars={"NEVER_SET": "1"}).serialize()
    given = ["/ray/setup_worker.py", "/ray/default_worker.py"]
    given += [f"--serialized-runtime-env-context={text}", "--language=PYTHON"]
    assert without_setup(given) == given
    assert "NEVER_SET" not in os.environ
