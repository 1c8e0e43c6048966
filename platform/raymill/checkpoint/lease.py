"""One writer a run: who holds it, since when, and whether the holder still lives.

The holder of a run is the newest record in its `lease/`, named by a fencing token that only grows. Of two
processes that want the same token one gets it (checkpoint/tokens.py), and rewrites it every few seconds. No
clock is compared with another's: a holder on this machine is dead when its process is, and one elsewhere when
its record stays as it is for longer than it may, by the clock of the one who watches it.
"""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from raymill.checkpoint.fence import FencedError, lower_fence, raise_fence
from raymill.checkpoint.ledger import Ledger
from raymill.checkpoint.tokens import Holder, LinkedTokens, StoredTokens, Tokens
from raymill.errors import RaymillError, StorageError
from raymill.redaction import typed_command
from raymill.storage.bucket import Bucket

BEAT_S = 5.0
PATIENCE_S = 30.0  # without a beat, a holder elsewhere counts as dead
_POLL_S = 0.5


class RunHeldError(RaymillError):
    """Another process is writing this run."""


class LeaseLostError(RaymillError):
    """This process held the run, and another has taken it over."""


def this_process() -> Holder:
    """This process, as a holder."""
    return Holder(
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        started=_started(os.getpid()) or 0.0,
        user=_user(),
        command=typed_command()[:200],
        since=datetime.now(UTC).isoformat(timespec="seconds"),
        nonce=uuid.uuid4().hex,
    )


class Lease:
    """A run that this process holds, from `acquire` to `release`; a thread of its own keeps it alive."""

    def __init__(self, tokens: Tokens, token: int, holder: Holder) -> None:
        self.token = token
        self.lost = False
        self._tokens = tokens
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
            holder = None
            with suppress(OSError, StorageError):
                _, holder = self._tokens.newest()
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
            with suppress(OSError, StorageError):  # then it is found dead
                self._tokens.write(self.token, replace(self._holder, released=True))

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                token, _ = self._tokens.newest()
                if token != self.token:
                    self.lost = True
                    return
                self._holder = replace(self._holder, beats=self._holder.beats + 1)
                self._tokens.write(self.token, self._holder)
            except (OSError, StorageError):
                continue  # the storage is away for a while; who wants the run can't reach it either


def acquire(run_dir: Path, say: Callable[[str], None], remote: str | None = None) -> Lease:
    """Become the one writer of a run, and fence off who was it before. `remote` is the run's place in an object
    store, if that is where it is kept.

    A holder elsewhere is watched for `PATIENCE_S` before it counts as dead; `say` tells the user so.

    Raises:
        RunHeldError: the holder lives; says who it is and since when.
        LeaseLostError: another process has taken the run over meanwhile.
        StorageError: the object store can't be reached.
    """
    checkpoints = run_dir / "checkpoints"
    bucket = None if remote is None else Bucket(remote)
    tokens: Tokens = LinkedTokens(run_dir / "lease") if bucket is None else StoredTokens(bucket)
    holder = this_process()
    while True:
        token, current = tokens.newest()
        if current is not None and not current.released:
            _wait_for_death(tokens, token, current, run_dir, say)
        if tokens.claim(token + 1, holder):
            break
    lease = Lease(tokens, token + 1, holder)  # it beats from now on, however long the rest takes
    try:
        raise_fence(checkpoints, lease.token)
        if not _is_ours(tokens, lease.token, bucket):  # taken for dead before it began
            lower_fence(checkpoints, lease.token)
            lease.lost = True
            lease.check()
        tokens.forget(token)
    except BaseException:
        lease.release()
        raise
    return lease


def _is_ours(tokens: Tokens, token: int, bucket: Bucket | None) -> bool:
    if bucket is not None:
        try:
            Ledger(bucket, token).hold()
        except FencedError:
            return False
    return tokens.newest()[0] == token


def _wait_for_death(
    tokens: Tokens, token: int, holder: Holder, run_dir: Path, say: Callable[[str], None]
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
        newest, now = tokens.newest()
        if newest != token or now is None or now.released:
            return  # another one was faster, whom the next look finds; or there is none any more
        if now != holder:
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
