"""Sandbox for running a model's code with its tests, without harm to the machine.

Each run is a process of its own (the sandbox child, sandbox_child.py). It can read the standard library and
write a scratch folder, which is deleted. It has no environment, network, capabilities or further processes,
can't signal other processes, and its CPU time, memory, files and their sizes are limited. All of this uses
kernel features that need no privileges: landlock(7), seccomp(2), setrlimit(2). Where the kernel lacks one,
no code is run.

The score is less protected than the machine. Code that exits early, or accidentally replaces names that the
tests use, doesn't pass. But answer and tests share an interpreter, so code that looks for the tests there
can find them.
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
# Interval between checks of the scratch folder's size.
_CHECK_SECONDS = 0.1
_CHILD = Path(__file__).with_name("sandbox_child.py")
# Written by the sandbox child once it is confined.
_CONFINED = b"confined\n"
_PYTHON = ("python", "python3", "py", "py3")
# Possessive quantifiers (`*+`) don't backtrack, so matching a hostile line takes linear time.
_OPENS = re.compile(r"(?P<indent>\s*+)(?P<fence>`{3,}+|~{3,}+)\s*+(?P<language>[^\s`]*+)[^`]*+")
_OPENS_BEHIND_TEXT = re.compile(r"(?P<indent>).*\s(?P<fence>`{3,}+)(?P<language>py(?:thon)?3?)\s*+")
_CLOSES = re.compile(r"(?P<indent>\s*+)(?P<fence>`{3,}+|~{3,}+)\s*+(?:</\w++>\s*+)*+")
_ADVICE = (
    "code is judged only where the kernel confines it (Linux 5.13 with Landlock and seccomp, on x86_64 "
    "or aarch64); elsewhere, judge it behind an http address"
)


def last_code(text: str) -> str:
    """Return the last fenced block of Python in a Markdown text, or else of no named language, or else of any.

    A block may lack its end. A text without blocks is returned whole.
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
        # Other blocks often show the code's output or the command to run it.
        blocks = [block for block in blocks if block[0] in languages] or blocks
    return textwrap.dedent("\n".join(blocks[-1][1])) if blocks else text


def _closes(line: str, opened: re.Match[str]) -> bool:
    """Tell whether a line ends a block: its fence must be as long, and not indented like one in a docstring."""
    fence = _CLOSES.fullmatch(line)
    return (
        fence is not None
        and fence["fence"].startswith(opened["fence"])
        and len(fence["indent"]) <= len(opened["indent"]) + 3
    )


def passes(code: str, tests: str, seconds: float = WALL_SECONDS) -> bool:
    """Tell whether the tests, run after the code in one module, finish within the limits.

    Code that exceeds a limit of time or resources doesn't pass.

    Raises:
        RewardError: the tests aren't Python, or code can't be confined on this machine.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(tests, "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise RewardError(f"broken tests: the reference isn't Python, {error}") from None
    instructions = program() if sys.platform.startswith("linux") else None
    if instructions is None:
        raise RewardError(
            f"no sandbox: {sys.platform} on {os.uname().machine} isn't supported; {_ADVICE}"
        )
    token = secrets.token_hex(16)
    limits = {
        "RLIMIT_CPU": max(1, math.ceil(seconds)),
        "RLIMIT_AS": MEMORY_BYTES,
        "RLIMIT_FSIZE": FILE_BYTES,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_CORE": 0,
    }
    setup = {"answer": code, "filter": instructions, "limits": limits}
    first = json.dumps(setup).encode()
    second = json.dumps({"tests": tests, "token": token}).encode()
    scratch = tempfile.mkdtemp(prefix="raymill-code-")
    try:
        with tempfile.TemporaryFile() as stream:
            stream.write(first + second)
            stream.flush()
            # Opened again read-only, because the code inherits it.
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
    """Return the reason why code can't be run on this machine, or None if it can; tested once."""
    try:
        passes("", "")
    except RewardError as error:
        return str(error)
    return None


def _run(request: int, length: int, scratch: str, seconds: float) -> tuple[int, bytes]:
    """Return the exit status of the sandbox child, and the beginning of its output."""
    process = subprocess.Popen(
        # Like -I, except that the hash seed is fixed, so that repeated runs of the same code have the same
        # result.
        [sys.executable, "-P", "-s", "-S", "-B", str(_CHILD), str(length), str(os.getpid())],
        stdin=request,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=scratch,
        env={"PYTHONHASHSEED": "0"},
        start_new_session=True,
    )
    assert process.stdout is not None, "its standard output is a pipe"
    with process.stdout as stdout:
        try:
            _watch(process.pid, scratch, time.monotonic() + seconds)
        finally:
            # The process hasn't been waited for, so its id can't have been reused.
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        # All writers have been killed, so this never blocks.
        return status, os.read(stdout.fileno(), 4096)


def _watch(pid: int, scratch: str, deadline: float) -> None:
    """Return when the process has ended, its time is over, or its scratch folder is too full."""
    ended = os.pidfd_open(pid)
    try:
        while (left := deadline - time.monotonic()) > 0:
            if select.select([ended], [], [], min(left, _CHECK_SECONDS))[0] or _too_full(scratch):
                return
    finally:
        os.close(ended)


def _too_full(scratch: str) -> bool:
    """Tell whether the folder exceeds a limit of bytes, files or depth; stops at the first excess."""
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
            # Removed in the meantime.
            continue
        except OSError:
            # The path is too long, or the code has made the folder unreadable.
            return True
    return False


def _remove(scratch: str) -> None:
    """Delete the folder with `rm`, which handles any depth; if modes prevent it, change them and try again."""
    for command in (["rm", "-rf"], ["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        try:
            os.rmdir(scratch)
        except FileNotFoundError:
            return
        except OSError:
            subprocess.run([*command, "--", scratch], check=False, stderr=subprocess.DEVNULL)
