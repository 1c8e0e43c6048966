"""Tracking of a run by its driver: a thread that sends the event log to MLflow, whatever state MLflow is in."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import TrackingError
from raymill.redaction import redacted_value
from raymill.track.follow import Follower
from raymill.track.forwarder import Forwarder
from raymill.track.registry import register_export
from raymill.track.server import call, connect, is_local, tracking_uri

if TYPE_CHECKING:
    from raymill.checkpoint.resume import VerifiedCheckpoint

# Returns the readings of the run's machines by metric name.
Readings = Callable[[], Mapping[str, float]]

POLL_S = 1.0
SYSTEM_EVERY_S = 10.0
MAX_BACK_OFF_S = 60.0
# MLflow's import takes seconds of a core, which the first step shouldn't wait for. After this time the run is
# tracked even without a step, so that a slow start is visible.
FIRST_STEP_S = 30.0


class Tracker:
    """Send a run to MLflow from a daemon thread.

    It never raises into training, blocks it, or shares a process with it. Events that can't be sent stay in the
    event log and are sent when the same command runs again. `readings` is called every `SYSTEM_EVERY_S`, from
    that thread.
    """

    def __init__(self, resolved: ResolvedRun, readings: Readings = dict) -> None:
        self.resolved = resolved
        self._readings = readings
        self._tracking = resolved.job.tracking
        self._root = resolved.job.storage.folder
        self._uri = tracking_uri(self._tracking, self._root)
        self._closing = threading.Event()
        self._wanted = threading.Event()  # set to connect at once, without waiting for a step
        self._ready = threading.Event()
        self._status = "failed"
        self._forwarder: Forwarder | None = None
        self._log = _file_log(resolved.run_dir / "logs" / "tracking.log")
        self._thread: threading.Thread | None = None
        self._ended = False

    @property
    def enabled(self) -> bool:
        return self._tracking.uri != "none"

    def start(self) -> None:
        """Start the thread, if tracking is on."""
        if self.enabled:
            self._thread = threading.Thread(target=self._run, name="raymill-tracking", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        self._wait_for_a_step()
        back_off = POLL_S
        system_due = 0.0
        while True:
            # Read before forwarding, so that events written before closing are still sent.
            closing = self._closing.is_set()
            try:
                self._begin()
                sent = self._forward()
                if self._tracking.system_metrics and time.monotonic() >= system_due:
                    system_due = time.monotonic() + SYSTEM_EVERY_S
                    self._system()
                # The last event was sent and no other can come.
                if closing and not sent:
                    self._end()
                    return
                back_off = POLL_S
                if not sent:
                    self._closing.wait(POLL_S)
            except TrackingError as error:
                self._log.warning("%s (next try in %.0f s)", error, back_off)
                if closing:
                    # The event is set by now and would return at once.
                    time.sleep(min(back_off, 2.0))
                else:
                    self._closing.wait(back_off)
                back_off = min(2 * back_off, MAX_BACK_OFF_S)

    def _wait_for_a_step(self) -> None:
        """Wait for a step of this process's workers, for `FIRST_STEP_S`, or until MLflow is needed."""
        follower = Follower.at_end(self.resolved.event_log)
        deadline = time.monotonic() + FIRST_STEP_S
        while time.monotonic() < deadline and not self._wanted.wait(POLL_S / 4):
            if any(event["kind"] == "step" for event in follower.read()):
                return

    def _begin(self) -> None:
        if self._ready.is_set():
            return
        if self._forwarder is None:
            client = connect(self._tracking, self._root)
            self._forwarder = Forwarder(self.resolved, client)
        call(self._forwarder.begin, self._uri)
        self._ready.set()

    def _forward(self) -> bool:
        assert self._forwarder is not None, "call _begin first"
        return bool(call(self._forwarder.forward, self._uri))

    def _system(self) -> None:
        assert self._forwarder is not None, "call _begin first"
        forwarder = self._forwarder
        try:
            readings = self._readings()
        # Whatever fails on a node or in Ray, metrics must still be sent.
        except Exception as error:
            self._log.warning(
                "the machines' load can't be read: %s: %s", type(error).__name__, error
            )
            return
        # Readings belong to no training step, and seconds give MLflow a growing number.
        step = int(time.time())
        call(lambda: forwarder.log_system(readings, time.time(), step), self._uri)

    def _end(self) -> None:
        assert self._forwarder is not None, "call _begin first"
        forwarder = self._forwarder
        call(lambda: forwarder.end(self._status), self._uri)
        if not is_local(self._uri):
            print(f"tracked  {redacted_value(self._uri)}/#{forwarder.page}", flush=True)
        self._ended = True

    def register(
        self,
        found: VerifiedCheckpoint,
        export: Path,
        metrics: Mapping[str, float],
        adapter: Path | None = None,
    ) -> str:
        """Register the exported model, and its adapter if any. Return `models:/name/version as name@alias`.

        Raises:
            TrackingError: the registry can't be reached, or refused.
        """
        self._wanted.set()
        if not self._ready.wait(self._tracking.flush_timeout_s):
            raise TrackingError(
                f"MLflow at {redacted_value(self._uri)} can't be reached; the model is in {export}, and the "
                "same command registers it once MLflow is back"
            )
        assert self._forwarder is not None, "call _begin first"
        if adapter is not None:
            register_export(self._forwarder, found, adapter, metrics, self._uri, "-adapter")
        return register_export(self._forwarder, found, export, metrics, self._uri)

    def attach(self, paths: Sequence[Path]) -> None:
        """Attach files to the MLflow run, if it can be reached."""
        forwarder = self._forwarder
        if forwarder is None or not self._ready.is_set() or forwarder.run_id is None:
            return
        for path in paths:
            try:
                call(partial(forwarder.client.log_artifact, forwarder.run_id, str(path)), self._uri)
            except TrackingError as error:
                self._log.warning("%s", error)

    def close(self, status: str) -> None:
        """Send the remaining events for at most `tracking.flush_timeout_s`.

        Print a message if some are left.
        """
        if self._thread is None:
            return
        self._status = status
        self._closing.set()
        self._wanted.set()
        # Whatever is left is sent when the same command runs again.
        self._thread.join(self._tracking.flush_timeout_s)
        if not self._ended:
            print(
                f"tracking: MLflow at {redacted_value(self._uri)} didn't take everything "
                f"(see {self.resolved.run_dir / 'logs' / 'tracking.log'}); nothing is lost: "
                "the same command sends the rest once it is back"
            )


def _file_log(path: Path) -> logging.Logger:
    path.parent.mkdir(parents=True, exist_ok=True)
    log = logging.getLogger(f"raymill.tracking.{path}")
    # A tracking problem must not appear on the user's terminal.
    log.propagate = False
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.FileHandler(path, delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
    return log
