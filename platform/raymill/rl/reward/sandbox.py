"""Running code that a model wrote, with tests, so that it can't hurt the machine.

Each run is a process of its own (cage.py) that can read the standard library and write a scratch folder
that is deleted; it has no environment, network, capabilities or further processes, can't signal
others, and its CPU time, memory, files and their sizes are limited. The means are the kernel's, and
need no privileges: landlock(7), seccomp(2), setrlimit(2). Where it lacks one, no code is run.

Its score is only half as safe. Leaving early, or replacing what the tests build on by accident, doesn't
pass; but answer and tests share an interpreter, and code that sets out to find them there will.
"""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from functools import lru_cache
from pathlib import Path

from raymill.rl.reward.system_calls import program
from raymill.rl.reward.task import RewardError

WALL_SECONDS = 5.0
MEMORY_BYTES = 512 * 2**20
FILE_BYTES = 16 * 2**20
SCRATCH_BYTES = 64 * 2**20
SCRATCH_FILES = 1000
OPEN_FILES = 64
_LOOK_SECONDS = 0.1  # between looks into the scratch folder
_CAGE = Path(__file__).with_name("sandbox_child.py")
_CONFINED = b"confined\n"  # cage.py's word for it
_PYTHON = ("python", "python3", "py", "py3")
# Nothing is tried twice (`*+`): a hostile line costs its length.
_OPENS = re.compile(r"(?P<indent>\s*+)(?P<fence>`{3,}+|~{3,}+)\s*+(?P<language>[^\s`]*+)[^`]*+")
_OPENS_BEHIND_TEXT = re.compile(r"(?P<indent>).*\s(?P<fence>`{3,}+)(?P<language>py(?:thon)?3?)\s*+")
_CLOSES = re.compile(r"(?P<indent>\s*+)(?P<fence>`{3,}+|~{3,}+)\s*+(?:</\w++>\s*+)*+")
_ADVICE = (
    "code is judged only where the kernel confines it (Linux 5.13 with Landlock and seccomp, on x86_64 "
    "or aarch64); elsewhere, judge it behind an http address"
)


def last_code(text: str) -> str:
    """The last fenced block of Python in a Markdown text, or else of no named language, or else of any.

    A block may lack its end; a text without blocks is code as a whole.
    """
    blocks: list[tuple[str, list[str]]] = []
    within: re.Match[str] | None = None
    for line in text.splitlines():
        if within is None:
            within = _OPENS.fullmatch(line) or _OPENS_BEHIND_TEXT.fullmatch(line)
            if within is not None:
                blocks.append((within["language"].casefold(), []))
        elif _closes(line, within):
            within = None
        else:
            blocks[-1][1].append(line)
    for languages in (_PYTHON, ("",)):
        # What follows is often the code's output, or how to run it.
        blocks = [block for block in blocks if block[0] in languages] or blocks
    return textwrap.dedent("\n".join(blocks[-1][1])) if blocks else text


def _closes(line: str, opened: re.Match[str]) -> bool:
    """Tell whether a line ends a block: not with a shorter fence, and not with one inside a docstring."""
    found = _CLOSES.fullmatch(line)
    return (
        found is not None
        and found["fence"].startswith(opened["fence"])
        and len(found["indent"]) <= len(opened["indent"]) + 3
    )


def passes(code: str, tests: str, seconds: float = WALL_SECONDS) -> bool:
    """Whether the tests, run after the code in one module, come to their end within the limits.

    Code that takes too long, or too much of anything, doesn't pass.

    Raises:
        RewardError: the tests aren't Python, or code can't be confined on this machine.
    """
    _check_tests(tests)
    instructions = program() if sys.platform.startswith("linux") else None
    if instructions is None:
        raise RewardError(
            f"no sandbox: {sys.platform} on {os.uname().machine} isn't known; {_ADVICE}"
        )
    token = secrets.token_hex(16)
    setup = {"answer": code, "filter": instructions, "limits": _limits(seconds)}
    first = json.dumps(setup).encode()
    second = json.dumps({"tests": tests, "token": token}).encode()
    scratch = tempfile.mkdtemp(prefix="raymill-code-")
    try:
        with tempfile.TemporaryFile() as stream:
            stream.write(first + second)
            stream.flush()
            # Opened again for reading alone: the code inherits it.
            with open(f"/proc/self/fd/{stream.fileno()}", "rb") as request:
                status, result = _run(request.fileno(), len(first), scratch, seconds)
    finally:
        _remove(scratch)
    if not result.startswith(_CONFINED):
        if not result:
            raise RewardError(
                f"sandbox not ready: its process ended with {status}, or took over {seconds:.1f} s to start"
            )
        raise RewardError(f"no sandbox: {result.decode(errors='replace')}; {_ADVICE}")
    return status == 0 and result == _CONFINED + token.encode()


@lru_cache(maxsize=1)
def unavailable() -> str | None:
    """Why code can't be judged on this machine, or None if it can; tried out once."""
    try:
        passes("", "")
    except RewardError as error:
        return str(error)
    return None


def _check_tests(tests: str) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(tests, "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise RewardError(f"broken tests: the reference isn't Python, {error}") from None


def _limits(seconds: float) -> dict[str, int]:
    return {
        "RLIMIT_CPU": max(1, math.ceil(seconds)),
        "RLIMIT_AS": MEMORY_BYTES,
        "RLIMIT_FSIZE": FILE_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
    }


def _run(request: int, length: int, scratch: str, seconds: float) -> tuple[int, bytes]:
    """Exit status of the caged process, and the beginning of what it wrote."""
    process = subprocess.Popen(
        # -I but for one thing: the seed of hashes is fixed, so that a run judges as the next one does.
        [sys.executable, "-P", "-s", "-S", "-B", str(_CAGE), str(length), str(os.getpid())],
        stdin=request,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=scratch,
        env={"PYTHONHASHSEED": "0"},
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout as stdout:
        try:
            _watch(process.pid, scratch, time.monotonic() + seconds)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet: the number is still its own
            status = process.wait()
        return status, os.read(stdout.fileno(), 4096)  # nobody is left to write: this never waits


def _watch(pid: int, scratch: str, deadline: float) -> None:
    """Return when the process has ended, its time is over, or its scratch folder is overfull."""
    ended = os.pidfd_open(pid)
    try:
        while (left := deadline - time.monotonic()) > 0:
            if select.select([ended], [], [], min(left, _LOOK_SECONDS))[0] or _overfull(scratch):
                return
    finally:
        os.close(ended)


def _overfull(scratch: str) -> bool:
    """Whether the folder holds too much, in bytes, files or depth; looks no further than it must."""
    size = count = 0
    folders = [scratch]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    size, count = size + entry.stat(follow_symlinks=False).st_size, count + 1
                    if size > SCRATCH_BYTES or count > SCRATCH_FILES:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except FileNotFoundError:
            continue  # removed in the meantime
        except OSError:
            return True  # a path too long to be named, or closed to its own reader
    return False


def _remove(scratch: str) -> None:
    """Delete the folder. `rm` copes with any depth; modes may have been made to hinder it."""
    for command in (["rm", "-rf"], ["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        try:
            os.rmdir(scratch)
        except FileNotFoundError:
            return
        except OSError:
            subprocess.run([*command, "--", scratch], check=False, stderr=subprocess.DEVNULL)
