"""A kill or a full disk at every write of a commit: the previous checkpoint stays, or the new one
is whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import faults.injector
from checkpoint.test_commit import save, state
from faults.injector import happened, with_faults
from raymill.checkpoint.fence import raise_fence
from raymill.checkpoint.resume import newest_verified

TESTS = Path(__file__).resolve().parents[1]
# A rank's file, the index, the manifest, the folder's entries, and after the rename those of its parent.
WRITES = 5
AFTER_THE_RENAME = 5
SERVER = """
import json, os, sys, traceback
import sitecustomize
import checkpoint.test_remote
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(asked["stderr"], os.O_WRONLY | os.O_CREAT, 0o600), 2)
            os.environ.update(asked["environment"])
            sitecustomize._PATH = os.environ["RAYMILL_FAULTS"]
            sys.argv = ["-c", *asked["arguments"]]
            exec(asked["script"], {"__name__": "__main__"})
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
SCRIPT = """
import sys
from pathlib import Path
from checkpoint.test_commit import save
for step in (1, 2):
    save(Path(sys.argv[1]), step)
"""


def run(folder: Path, fault: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Two commits, the second of which meets the fault."""
    return injected(SCRIPT, folder, fault, str(folder / "checkpoints"))


def injected(
    script: str, folder: Path, fault: dict[str, Any], *arguments: str
) -> subprocess.CompletedProcess[str]:
    """A process in which rank 0 meets a fault, once: a fork of one that has imported what scripts need."""
    errors = folder / "stderr.txt"
    asked = {
        "script": script, "arguments": arguments, "stderr": str(errors),
        "environment": dict(os.environ) | with_faults(folder, fault | {"rank": 0}),
    }  # fmt: skip
    server = forking()
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(asked) + "\n")
    server.stdin.flush()
    code = int(server.stdout.readline())
    return subprocess.CompletedProcess(script, code, "", errors.read_text())


@cache
def forking() -> subprocess.Popen[str]:
    """The process that forks; it ends with this one."""
    paths = (faults.injector.__file__, str(TESTS), str(TESTS.parent / "platform"))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(paths[0]).parent), *paths[1:]]),
        "RAYMILL_FAULTS": "those of each fork",
    }
    return subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def check(checkpoints: Path, write: int) -> None:
    """Check that the previous or the new checkpoint is whole, and that the run can continue."""
    found = newest_verified(checkpoints)
    assert found is not None
    assert found.passed_over == ()
    step = 2 if write >= AFTER_THE_RENAME else 1
    assert found.manifest.step == step
    for name, arrays in state(step).items():
        for kind, values in arrays.items():
            assert np.array_equal(found.reader().read(kind, name), values)
    raise_fence(checkpoints, 1)
    left = {path.name for path in checkpoints.iterdir()}
    assert left == {"writing-1", *(f"step-0000000{n}" for n in range(1, step + 1))}
    save(checkpoints, 3)


@pytest.mark.parametrize("write", range(1, WRITES + 1))
def test_killed(tmp_path: Path, write: int) -> None:
    done = run(tmp_path, {"what": "kill", "write": WRITES + write})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert happened(tmp_path) == 1
    check(tmp_path / "checkpoints", write)


@pytest.mark.parametrize(
    ("what", "words"),
    [("full", "OSError: [Errno 28] No space left"), ("denied", "PermissionError: [Errno 13]")],
)
@pytest.mark.parametrize("write", range(1, WRITES + 1))
def test_the_disk_is_full_or_closed(tmp_path: Path, write: int, what: str, words: str) -> None:
    done = run(tmp_path, {"what": what, "write": WRITES + write})
    assert done.returncode == 1
    assert f"the checkpoint of step 2 was not committed (rank 0: {words}" in done.stderr
    check(tmp_path / "checkpoints", write)
