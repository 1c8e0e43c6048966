"""Lease of a run: one writer at a time, its identity, and whether it is still alive.

The holder of a run is the newest record in its `lease/`, named by a fencing token that only grows.
Of two processes that want the same token, one gets it (checkpoint/fencing_tokens.py) and rewrites
it every few seconds. Clocks of different machines are never compared: a holder on this machine is
dead when its process is; a holder elsewhere is dead when its record stays unchanged for too long,
by the clock of the process that watches it.
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
from raymill.checkpoint.fencing_tokens import BucketTokens, FencingTokens, FolderTokens, Holder
from raymill.checkpoint.ledger import Ledger
from raymill.errors import RaymillError, StorageError
from raymill.redaction import typed_command
from raymill.storage.bucket import Bucket

HEARTBEAT_S = 5.0
# A holder on another machine counts as dead after this time without a heartbeat.
HOLDER_TIMEOUT_S = 30.0
_POLL_S = 0.5


class RunHeldError(RaymillError):
    """Another process is writing this run."""


class LeaseLostError(RaymillError):
    """Another process has taken over the run that this process held."""


def this_process() -> Holder:
    """Return the record of this process as a holder."""
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
    """Run that this process holds, from `acquire` to `release`; a thread keeps the lease alive."""

    def __init__(self, tokens: FencingTokens, token: int, holder: Holder) -> None:
        self.token = token
        self.lost = False
        self._tokens = tokens
        self._holder = holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_alive, name="raymill-lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that this process still holds the run.

        Raises:
            LeaseLostError: another process has taken it over.
        """
        if self.lost:
            holder = None
            with suppress(OSError, StorageError):
                _, holder = self._tokens.newest()
            by = "another process" if holder is None else holder.describe()
            raise LeaseLostError(
                f"this run was taken over by {by}, because this process seemed dead. Committed checkpoints "
                "stay; this process can commit nothing more"
            )

    def release(self) -> None:
        """Give the run up, so that the next process can have it at once."""
        self._ended.set()
        self._thread.join()
        if not self.lost:
            # If the record can't be written, the next process finds this one dead.
            with suppress(OSError, StorageError):
                self._tokens.write(self.token, replace(self._holder, released=True))

    def _keep_alive(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                token, _ = self._tokens.newest()
                if token != self.token:
                    self.lost = True
                    return
                self._holder = replace(self._holder, beats=self._holder.beats + 1)
                self._tokens.write(self.token, self._holder)
            # While the storage doesn't answer, other processes can't take the run over either.
            except (OSError, StorageError):
                continue


def acquire(run_dir: Path, say: Callable[[str], None], remote: str | None = None) -> Lease:
    """Become the one writer of a run, and fence off the previous one.

    `remote` is the run's URI in an object store, where it is kept in one. A holder elsewhere is
    watched for `HOLDER_TIMEOUT_S` before it counts as dead; `say` reports that to the user.

    Raises:
        RunHeldError: the holder is alive; names it and the time since which it holds the run.
        LeaseLostError: another process has taken the run over meanwhile.
        StorageError: the object store can't be reached.
    """
    checkpoints = run_dir / "checkpoints"
    bucket = None if remote is None else Bucket(remote)
    tokens: FencingTokens = (
        FolderTokens(run_dir / "lease") if bucket is None else BucketTokens(bucket)
    )
    holder = this_process()
    while True:
        token, current = tokens.newest()
        if current is not None and not current.released:
            _wait_for_death(tokens, token, current, run_dir, say)
        if tokens.claim(token + 1, holder):
            break
    # The lease sends heartbeats from now on, however long the rest takes.
    lease = Lease(tokens, token + 1, holder)
    try:
        # From here on, no earlier holder can commit on this file system.
        raise_fence(checkpoints, lease.token)
        # Another process may have found this one dead before it raised its fence.
        if not _is_ours(tokens, lease.token, bucket):
            lower_fence(checkpoints, lease.token)
            lease.lost = True
            lease.check()
        # Older tokens are deleted only now that the fence stands.
        tokens.forget(token)
    except BaseException:
        lease.release()
        raise
    return lease


def _is_ours(tokens: FencingTokens, token: int, bucket: Bucket | None) -> bool:
    if bucket is not None:
        try:
            Ledger(bucket, token).fence_off()
        except FencedError:
            return False
    return tokens.newest()[0] == token


def _wait_for_death(
    tokens: FencingTokens, token: int, holder: Holder, run_dir: Path, say: Callable[[str], None]
) -> None:
    """Return once the holder counts as dead or gave up; raise RunHeldError if it is alive."""
    held = RunHeldError(
        f"run {run_dir.name} is held by {holder.describe()}. Two writers would damage it: stop that one, wait "
        "for it, or choose another run.name"
    )
    # On this machine, the process table answers at once.
    if holder.machine == _machine():
        if _is_alive(holder):
            raise held
        return
    say(
        f"run {run_dir.name} was last held by {holder.describe()}; watching for {HOLDER_TIMEOUT_S:.0f} s "
        "whether it is still alive …"
    )
    deadline = time.monotonic() + HOLDER_TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(_POLL_S)
        newest, current = tokens.newest()
        # Another process was faster, which the caller finds next; or the holder gave up.
        if newest != token or current is None or current.released:
            return
        if current != holder:
            raise held


def _is_alive(holder: Holder) -> bool:
    return _started(holder.pid) == holder.started


def _started(pid: int) -> float | None:
    """Return the start of a process, by a clock that nobody can set; None when it has ended."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        stat = Path(f"/proc/{pid}/stat")
        # Only Linux has this file, whose clock counts from the machine's start.
        if not stat.exists():
            return float(process.create_time())
        return float(
            stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
        )
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None


def _machine() -> str:
    """Return an id of a running kernel and its process numbers, of which a container has its
    own."""
    try:
        # The boot id changes with each start of the machine; process numbers are unique per
        # namespace.
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    # These files exist on Linux only.
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode()}"


def _user() -> str:
    try:
        return getpass.getuser()
    # A user may have no name, as in many containers.
    except (KeyError, OSError):
        return str(os.getuid())
