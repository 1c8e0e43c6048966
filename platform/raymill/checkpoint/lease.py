"""One writer a run: who holds it, since when, and whether the holder still lives.

The holder of a run is the newest file in its `lease/` folder, named by a fencing token that only grows. It is
made by linking, so that of two processes that want the same token one gets it, and rewritten every few
seconds. No clock is compared with another's: a holder on this machine is dead when its process is, and one
elsewhere when its file stays as it is for longer than it may, by the clock of the one who watches it.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from raymill.checkpoint.fence import lower_fence, raise_fence
from raymill.durable import fsync_path, write_atomic
from raymill.errors import RaymillError

BEAT_S = 5.0
PATIENCE_S = 30.0  # without a beat, a holder elsewhere counts as dead
_POLL_S = 0.5
_NAME = re.compile(r"(\d{8})\.json")


class RunHeldError(RaymillError):
    """Another process is writing this run."""


class LeaseLostError(RaymillError):
    """This process held the run, and another has taken it over."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a run. `machine` tells process numbers of one kernel and container apart."""

    host: str
    machine: str
    pid: int
    started: float  # of the process; since the machine's, so that a clock put right changes nothing
    user: str
    command: str
    since: str
    beats: int = 0
    released: bool = False

    def spelled(self) -> str:
        """For the user: who it is."""
        return (
            f"process {self.pid} of {self.user} on {self.host}, since {self.since} ({self.command})"
        )


def this_process() -> Holder:
    """This process, as a holder."""
    return Holder(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()) or 0.0,
        user=_user(),
        command=shlex.join(["python", *sys.argv])[:200],
        since=datetime.now(UTC).isoformat(timespec="seconds"),
    )


class Lease:
    """A run that this process holds, from `acquire` to `release`; a thread of its own keeps it alive."""

    def __init__(self, folder: Path, token: int, holder: Holder) -> None:
        self.folder = folder
        self.token = token
        self.lost = False
        self._holder = holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="raymill-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """
        Raises:
            LeaseLostError: the run is another process's by now.
        """
        if self.lost:
            _, holder = _newest(self.folder)
            by = "another process" if holder is None else holder.spelled()
            raise LeaseLostError(
                f"this run was taken over by {by}: this process was taken for dead. What was committed stands; "
                "nothing of this process's is committed any more"
            )

    def release(self) -> None:
        """Let the next one have the run at once."""
        self._ended.set()
        self._thread.join()
        if not self.lost:
            with suppress(OSError):  # then it is found dead
                self._write(released=True)

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                token, _ = _newest(self.folder)
                if token != self.token:
                    self.lost = True
                    return
                self._holder = replace(self._holder, beats=self._holder.beats + 1)
                self._write()
            except (
                OSError
            ):  # the storage is away for a while; who wants the run can't reach it either
                continue

    def _write(self, released: bool = False) -> None:
        body = asdict(replace(self._holder, released=released))
        write_atomic(_path(self.folder, self.token), json.dumps(body, indent=1))


def acquire(run_dir: Path, say: Callable[[str], None]) -> Lease:
    """Become the one writer of a run, and fence off who was it before.

    A holder elsewhere is watched for `PATIENCE_S` before it counts as dead; `say` tells the user so.

    Raises:
        RunHeldError: the holder lives; says who it is and since when.
        LeaseLostError: another process has taken the run over meanwhile.
    """
    folder = run_dir / "lease"
    folder.mkdir(parents=True, exist_ok=True)
    holder = this_process()
    while True:
        token, current = _newest(folder)
        if current is not None and not current.released:
            _wait_for_death(folder, token, current, run_dir, say)
        if _claim(folder, token + 1, holder):
            break
    lease = Lease(folder, token + 1, holder)  # it beats from now on, however long the rest takes
    raise_fence(run_dir / "checkpoints", lease.token)
    if _newest(folder)[0] != lease.token:  # taken for dead before it began
        lower_fence(run_dir / "checkpoints", lease.token)
        lease.lost = True
        lease.check()
    for path in folder.glob("*.json"):
        if (match := _NAME.fullmatch(path.name)) and int(match[1]) <= token:
            path.unlink(missing_ok=True)
    return lease


def _wait_for_death(
    folder: Path, token: int, holder: Holder, run_dir: Path, say: Callable[[str], None]
) -> None:
    held = RunHeldError(
        f"run {run_dir.name} is held by {holder.spelled()}. Two writers would spoil it: stop that one, wait "
        "for it, or choose another run.name"
    )
    if holder.machine == _machine():
        if _lives(holder):
            raise held
        return
    say(
        f"run {run_dir.name} was last held by {holder.spelled()}; watching for {PATIENCE_S:.0f} s whether it "
        "still lives …"
    )
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        if _newest(folder) != (token, holder):
            now = _newest(folder)[1]
            if now is not None and now.released:
                return
            raise held


def _lives(holder: Holder) -> bool:
    return _started(holder.pid) == holder.started


def _started(pid: int) -> float | None:
    """When a process started, in a clock that nobody sets; None when it has ended."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        if not stat.exists():  # no Linux
            return float(process.create_time())
        return float(
            stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
        )
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None


def _claim(folder: Path, token: int, holder: Holder) -> bool:
    """Whether this process got the token: the file appears whole, or was there."""
    draft = folder / f"draft-{uuid.uuid4().hex}"
    draft.write_text(json.dumps(asdict(holder), indent=1), encoding="utf-8")
    fsync_path(draft)
    try:
        os.link(draft, _path(folder, token))
    except FileExistsError:
        return draft.stat().st_nlink == 2  # on NFS it may be our own, made by a request sent twice
    finally:
        draft.unlink()
    fsync_path(folder)
    return True


def _newest(folder: Path) -> tuple[int, Holder | None]:
    """The highest token given out, 0 for none, and its holder; None for one that can't be read."""
    while True:
        tokens = [int(m[1]) for path in folder.iterdir() if (m := _NAME.fullmatch(path.name))]
        if not tokens:
            return 0, None
        token = max(tokens)
        try:
            return token, Holder(**json.loads(_path(folder, token).read_text(encoding="utf-8")))
        except FileNotFoundError:  # a newer holder has just deleted it
            continue
        except (ValueError, TypeError):
            return token, None


def _path(folder: Path, token: int) -> Path:
    return folder / f"{token:08d}.json"


def _machine() -> str:
    """Names a kernel's run and the process numbers within: a container has its own of those."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return f"{socket.gethostname()}/{uuid.getnode()}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user that has no name, as in many containers
        return str(os.getuid())
