"""Code that a model might write, innocent and not, and what becomes of it."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from raymill.rl.reward import sandbox
from raymill.rl.reward.functions import REWARDS
from raymill.rl.reward.sandbox import last_code, passes, unavailable
from raymill.rl.reward.task import RewardError
from rl.reward.samples import sample

needs_kernel = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
DENIED = """
import errno
def denied(action, *arguments):
    try:
        action(*arguments)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM, errno.EXDEV)  # the last: of renames
    return False
"""


_WITH_EXAMPLE = "def f():\n    '''\n    ```\n    f()\n    ```\n    '''"


@pytest.fixture(autouse=True)
def _leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("Look:\n```python\nx = 1\n\ny = 2\n```\nDone.", "x = 1\n\ny = 2"),
        ("```\na\n```\n```py\nb\n```", "b"),
        ("```python\ncut off(", "cut off("),
        ("```python\ns = '''\n```text\n'''\n```", "s = '''\n```text\n'''"),
        ("1. so\n   ```python\n   x = 1\n   ```", "x = 1"),
        ("```python\n```", ""),
        ("", ""),
        # Output and commands behind the code aren't it: LiveCodeBench/LiveCodeBench#118.
        ("```python\nx = 1\n```\nIt prints:\n```\n1\n```", "x = 1"),
        ("```Python3\nx = 1\n```\n```bash\npython x.py\n```\n```text\n1\n```", "x = 1"),
        ("```\nx = 1\n```\n```sh\npython x.py\n```", "x = 1"),
        ("~~~python\nx = 1\n~~~", "x = 1"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("```python\ndef f():\n    '''\n    ```\n    f()\n    ```\n    '''\n```", _WITH_EXAMPLE),
        ("Here it is: ```python\nx = 1\n```\nDone.", "x = 1"),
        ("<answer>\n```python\nx = 1\n```</answer>", "x = 1"),
    ],
)
def test_the_last_block_of_code(text: str, code: str) -> None:
    assert last_code(text) == code


@needs_kernel
@pytest.mark.parametrize(
    ("code", "tests", "passed"),
    [
        ("def f(x): return x * x", "assert f(3) == 9", True),
        ("def f(x): return x + x", "assert f(3) == 9", False),
        ("def f(x: return", "assert True", False),
        ("", "f(3)", False),
        ("raise SystemExit(1)", "pass", True),  # a script's own end; the tests decide
        ("if __name__ == '__main__': x = 5", "assert x == 5", True),
        ("\ud800", "pass", False),  # isn't text
        ("x = '\0'", "pass", False),
    ],
)
def test_tests_decide(code: str, tests: str, passed: bool) -> None:
    assert passes(code, tests) is passed


@needs_kernel
def test_ordinary_code_runs_as_it_would_anywhere() -> None:
    tests = """
import asyncio, dataclasses, decimal, json, pickle, random, sqlite3, tempfile, threading, unittest
import concurrent.futures, zoneinfo, secrets, hashlib, subprocess
async def later(): await asyncio.sleep(0.001); return 5
assert asyncio.run(later()) == 5
with concurrent.futures.ThreadPoolExecutor(4) as pool: assert sum(pool.map(abs, [-1, -2])) == 3
with tempfile.TemporaryDirectory() as folder:
    with open(folder + "/a", "w") as stream: print("é", file=stream)
    assert open(folder + "/a").read() == "é\\n"
database = sqlite3.connect("x.db"); database.execute("create table t (a)"); database.commit()
assert pickle.loads(pickle.dumps(Point(1))) == Point(1)
assert input_at_its_end()
class Case(unittest.TestCase):
    def test(self): self.assertEqual(Point(2).x, 2)
unittest.main()
"""
    code = """
import dataclasses
@dataclasses.dataclass
class Point:
    x: int
def input_at_its_end():
    try: input()
    except EOFError: return True
"""
    assert passes(code, tests)
    assert not passes(code, tests.replace("Point(2).x, 2", "Point(2).x, 3"))


@needs_kernel
@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "def f(): import sys; sys.exit(0)",
        "def f(): import os; os._exit(0)",
        "import builtins\nbuiltins.exec = builtins.compile = lambda *a, **k: None",
        "import os\nfor n in range(64):\n  try: os.write(n, b'0' * 32)\n  except OSError: pass\nos._exit(0)",
        "import atexit, os\natexit.register(os._exit, 0)",
        "import threading, os\nthreading.Timer(0.05, os._exit, [0]).start()\nimport time; time.sleep(1)",
    ],
)  # fmt: skip
def test_leaving_early_is_not_passing(code: str) -> None:
    assert not passes(code, "f()\nassert False")


@needs_kernel
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import re; re.match('(a+)+$', 'a' * 60 + '!')",
        "import signal, time\nfor s in (14, 15, 24): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "x = 7 ** 7 ** 9",
    ],
)
def test_code_without_end_is_wrong_not_an_error(code: str) -> None:
    begin = time.monotonic()
    assert not passes(code, "pass", seconds=0.5)
    assert time.monotonic() - begin < 30


@needs_kernel
@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(2 * 10**9)",
        "x = []\nwhile True: x.append(bytearray(10**7))",
        "def f(): f()\nf()",
        "import ctypes; ctypes.string_at(0)",
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=[9]).start()",
        "open('big', 'wb').truncate(10**9)",
        "with open('big', 'wb') as s:\n  while True: s.write(bytes(10**6))",
        "n = 0\nwhile True:\n  open(str(n), 'wb').write(bytes(10**7)); n += 1",
        "n = 0\nwhile True:\n  open(str(n), 'w').close(); n += 1",
        "import os\nwhile True:\n  os.mkdir('d'); os.chdir('d')",
        "import os\nos.mkdir('a'); open('a/b', 'w'); os.umask(0o777); os.mkdir('c'); raise ValueError",
        "import os\nos.mkdir('a', 0o300); open('a/b', 'w'); raise ValueError",
        "x = [open('x', 'w') for _ in range(1000)]",
        "import os\nfor n in range(64):\n  try: os.write(n, bytes(10**7))\n  except OSError: pass",
    ],
)
def test_taking_too_much_is_wrong_and_leaves_nothing(code: str, tmp_path: Path) -> None:
    assert not passes(code, "pass", seconds=1.0)
    assert list(tmp_path.iterdir()) == []


@needs_kernel
def test_printing_without_end_does_no_harm() -> None:
    assert passes("import sys\nfor _ in range(300): print('x' * 10**6); sys.stderr.write('y')", "")


@needs_kernel
def test_no_other_processes_can_be_made_or_reached() -> None:
    code = f"""{DENIED}
import os, resource, signal, subprocess
me, parent = os.getpid(), os.getppid()
assert denied(os.fork)
assert denied(os.posix_spawn, "/bin/true", ["true"], {{}})
assert denied(subprocess.run, ["/bin/true"])
assert denied(os.execv, "/bin/true", ["true"])
assert denied(os.kill, parent, 0) and denied(os.kill, 1, 0) and denied(os.kill, -1, 0)
assert denied(os.killpg, os.getpgid(parent), 0)
assert denied(os.pidfd_open, parent)
assert denied(resource.prlimit, parent, resource.RLIMIT_CPU)
assert denied(os.sched_setaffinity, parent, [0])
assert denied(os.setpriority, os.PRIO_PROCESS, parent, 19)
os.kill(me, 0)
done = True
"""
    assert passes(code, "assert done")
    assert not passes("import os\nwhile True: os.fork()", "pass")


@needs_kernel
def test_neither_limits_nor_rights_can_be_raised() -> None:
    code = f"""{DENIED}
import os, resource
assert denied(os.setuid, os.getuid() + 1) and denied(os.setgid, os.getgid() + 1)
assert denied(os.setgroups, [])
kept = 0
for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
    try:
        resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        kept += 1
"""
    assert passes(code, "assert kept == 4")


@needs_kernel
def test_nothing_outside_can_be_written(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    before = victim.stat()
    code = f"""{DENIED}
import os, shutil
victim, folder = {str(victim)!r}, {str(tmp_path)!r}
for mode in ("w", "a", "r", "r+"):
    assert denied(open, victim, mode), mode
assert denied(open, folder + "/new", "w") and denied(open, folder + "/new", "x")
assert denied(os.truncate, victim, 0) and denied(os.remove, victim) and denied(os.rmdir, folder)
assert denied(os.rename, victim, "here") and denied(os.link, victim, "here")
assert denied(os.symlink, victim, folder + "/link") and denied(os.mkdir, folder + "/new")
assert denied(os.chmod, victim, 0) and denied(os.chown, victim, 1, 1) and denied(os.utime, victim)
assert denied(os.setxattr, victim, "user.a", b"b")
assert denied(open, "/tmp/raymill-test", "w") and denied(open, "/dev/shm/raymill-test", "w")
assert denied(open, "../up", "w") and denied(os.memfd_create, "a")
open("inside", "w").write("x")
done = True
"""
    assert passes(code, "assert done")
    assert victim.read_text() == "as it was"
    after = victim.stat()
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (
        before.st_mode, before.st_uid, before.st_mtime_ns,
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == [victim]


@needs_kernel
def test_no_secret_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYMILL_TEST_SECRET", "s3cret")
    (tmp_path / "key").write_text("s3cret")
    code = f"""{DENIED}
import os
assert not os.environ and os.getenv("RAYMILL_TEST_SECRET") is None
for path in ("/proc/self/environ", f"/proc/{{os.getppid()}}/environ", "/proc/1/environ",
             f"/proc/{{os.getppid()}}/mem", "/etc/passwd", {str(tmp_path / "key")!r}):
    assert denied(open, path), path
for folder in ("/", "/home", "/root", "/tmp", "/proc", {str(tmp_path)!r}):
    assert denied(os.listdir, folder), folder
done = True
"""
    assert passes(code, "assert done")


@needs_kernel
def test_no_network() -> None:
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    asked: list[object] = []
    server.verify_request = lambda *request: bool(asked.append(request))  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    code = f"""{DENIED}
import socket
assert denied(socket.create_connection, ("127.0.0.1", {server.server_port}), 1)
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, socket.AF_NETLINK):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        assert denied(socket.socket, family, kind)
assert denied(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
one, other = socket.socketpair()
assert denied(one.connect, "/run/x")
done = True
"""
    assert passes(code, "assert done")
    server.shutdown()
    server.server_close()
    assert asked == []


@needs_kernel
def test_a_seed_of_hashes_that_is_always_the_same() -> None:
    order = "order = ''.join({'a', 'b', 'c', 'd', 'e', 'f'})"
    found = [passes(order, f"assert order == {expected!r}") for expected in _orders()]
    assert found == [True] * 3


def _orders() -> list[str]:
    command = [sys.executable, "-c", "print(''.join({'a', 'b', 'c', 'd', 'e', 'f'}))"]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [done.stdout.strip()] * 3


@needs_kernel
def test_the_function() -> None:
    code = REWARDS["code"]
    answer = "Sure.\n```python\ndef f(x):\n    return x * x\n```\n"
    assert code(sample(answer, "assert f(3) == 9")) == 1.0
    assert code(sample(answer, "assert f(3) == 8")) == 0.0
    assert code(sample("I can't.", "assert f(3) == 8")) == 0.0


def test_tests_that_are_not_python_are_an_error() -> None:
    for tests in ("assert f(", "x = '\0'"):
        with pytest.raises(RewardError, match=r"^broken tests:"):
            passes("", tests)


def test_without_confinement_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "program", lambda: None)
    with pytest.raises(RewardError, match=r"^no sandbox: "):
        passes("", "")
    child = tmp_path / "sandbox_child.py"
    text = sandbox._CHILD.read_text()
    child.write_text(text.replace("_RESTRICT_SELF = 444", "_RESTRICT_SELF = 9999"))
    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(RewardError, match=r"^no sandbox: .*landlock: Function not implemented"):
        passes(f"open({str(tmp_path / 'run')!r}, 'w')", "")
    assert not (tmp_path / "run").exists()
