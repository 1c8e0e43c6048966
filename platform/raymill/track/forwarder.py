"""Forwarding of the event log to MLflow, resumable and idempotent.

The event log is the spool, and a byte offset marks what has been sent. Sending a line twice is harmless, since
its metrics carry the line's own time and MLflow keeps one value for each (key, step, time).
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from raymill.durable import write_atomic
from raymill.engine.event_log import Event
from raymill.engine.resolved_run import ResolvedRun
from raymill.reading import read_json, status
from raymill.track.follow import Follower
from raymill.track.server import experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE_NAME = "tracking.json"
_PARAMETER_LIMIT = 6000  # characters; MLflow would cut longer ones silently
_PARAMETERS_A_CALL = 100
_METRICS_A_CALL = 900
_NOT_IN_NAMES = re.compile(r"://|[^\w.\- :/]+")
_NOT_METRICS = ("step", "attempt", "time")


class State(TypedDict, total=False):
    """Progress of forwarding, as stored in tracking.json."""

    run_id: str
    offset: int  # bytes of the event log that were sent
    described: bool  # parameters and datasets were logged


class Forwarder:
    """Sends a run's event log to MLflow.

    Every method may raise MLflow's errors; calling it again continues from there.
    """

    def __init__(self, resolved: ResolvedRun, client: MlflowClient) -> None:
        self.resolved = resolved
        self.client = client
        self._state_path = resolved.run_dir / STATE_NAME
        self._state = _read_state(self._state_path)
        self._follower = Follower(resolved.event_log, self._state.get("offset", 0))

    @property
    def run_id(self) -> str | None:
        return self._state.get("run_id")

    @property
    def page(self) -> str:
        """Path of the run's page, below the server's address."""
        assert self.run_id is not None, "call begin first"
        experiment = self.client.get_run(self.run_id).info.experiment_id
        return f"/experiments/{experiment}/runs/{self.run_id}"

    def begin(self) -> None:
        """Create the MLflow run, or continue the one that this run has."""
        if self.run_id is None:
            job = self.resolved.job
            run = self.client.create_run(
                experiment_id(self.client, job.tracking, job.storage.folder),
                run_name=job.run.name,
                tags=self._tags(),
            )
            self._remember({"run_id": run.info.run_id})
        else:
            self._continue_run()
        # Remembered after success, so that a failed description is sent again.
        if not self._state.get("described"):
            self._describe()
            self._remember({"described": True})

    def _continue_run(self) -> None:
        """Reopen the MLflow run; if it is gone (another server, a lost database), send everything again."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._state = {}
            self._follower = Follower(self.resolved.event_log)
            self.begin()

    def _tags(self) -> dict[str, str]:
        resolved = self.resolved
        tags = {
            "raymill.run_dir": str(resolved.run_dir),
            "raymill.config_digest": resolved.config_digest,
            "mlflow.source.git.commit": resolved.code_commit or "",
            "raymill.parent": resolved.parent or "",
            "raymill.job": type(resolved.job).__name__.removesuffix("Job").lower(),
        }
        return {key: value for key, value in tags.items() if value}

    def _describe(self) -> None:
        """Log parameters and dataset inputs, once per run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        from raymill.data.store.manifest import load_prepared

        assert self.run_id is not None, "call begin first"
        parameters = [
            Param(parameter_name(key), str(value)[:_PARAMETER_LIMIT])
            for key, value in self.resolved.config.items()
        ]
        for first in range(0, len(parameters), _PARAMETERS_A_CALL):
            self.client.log_batch(
                self.run_id, params=parameters[first : first + _PARAMETERS_A_CALL]
            )
        inputs = []
        for folder in self.resolved.folders:
            manifest = load_prepared(folder).manifest
            for split, context in (("train", "training"), ("validation", "evaluation")):
                totals = manifest.splits[split]
                dataset = Dataset(
                    name=f"{manifest.name}/{split}",
                    # MLflow allows 36 characters.
                    digest=manifest.digest[:36],
                    source_type="local",
                    source=json.dumps({"uri": str(folder)}),
                    profile=json.dumps(
                        {"rows": totals.rows, "tokens": totals.tokens, "bytes": totals.bytes}
                    ),
                )
                inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        self.client.log_inputs(self.run_id, inputs)

    def forward(self) -> bool:
        """Send the next lines. Return True if there were any."""
        from mlflow.entities import Metric

        assert self.run_id is not None, "call begin first"
        offset = self._follower.offset
        try:
            metrics: list[Metric] = []
            artifacts: list[str] = []
            tables: list[str] = []
            # Few lines at a time, so that closing and system metrics need not wait for a long backlog.
            for event in self._follower.read(limit=60):
                metrics += [
                    Metric(key, value, int(event["time"] * 1000), event["step"])
                    for key, value in metrics_of(event).items()
                ]
                if event["kind"] == "samples":
                    artifacts.append(event["samples_path"])
                if event["kind"] == "answers":
                    tables.append(event["answers_path"])
            if self._follower.offset == offset:
                return False
            for first in range(0, len(metrics), _METRICS_A_CALL):
                self.client.log_batch(self.run_id, metrics=metrics[first : first + _METRICS_A_CALL])
            for path in artifacts:
                self.client.log_artifact(self.run_id, str(self.resolved.run_dir / path), "samples")
            for path in tables:
                self._log_table(path)
            # Only now: a failure above sends the same lines again.
            self._remember({"offset": self._follower.offset})
        except Exception:
            # The same lines are sent again next time.
            self._follower.offset = offset
            raise
        return True

    def _log_table(self, path: str) -> None:
        """Log a file of columns and data as a table that MLflow's page shows and compares.

        `log_table` appends, so sending a table twice with it would duplicate its rows.
        """
        assert self.run_id is not None, "call begin first"
        self.client.log_artifact(self.run_id, str(self.resolved.run_dir / path), "answers")
        tag = "mlflow.loggedArtifacts"
        known = json.loads(self.client.get_run(self.run_id).data.tags.get(tag, "[]"))
        entry = {"path": f"answers/{Path(path).name}", "type": "table"}
        if entry not in known:
            self.client.set_tag(self.run_id, tag, json.dumps([*known, entry]))

    def log_system(self, values: Mapping[str, float], time_s: float, step: int) -> None:
        """Log readings of processors, memory and GPUs."""
        from mlflow.entities import Metric

        assert self.run_id is not None, "call begin first"
        metrics = [Metric(key, value, int(time_s * 1000), step) for key, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def end(self, status: str) -> None:
        """Close the MLflow run: "finished", "failed" or "stopped"."""
        assert self.run_id is not None, "call begin first"
        outcome = {"finished": "FINISHED", "failed": "FAILED"}.get(status, "KILLED")
        self.client.set_terminated(self.run_id, status=outcome)

    def _remember(self, state: State) -> None:
        self._state.update(state)
        write_atomic(self._state_path, json.dumps(self._state))


def parameter_name(key: str) -> str:
    """Return a key in a form that MLflow accepts; it refuses characters of URLs, which may occur in keys."""
    return posixpath.normpath(_NOT_IN_NAMES.sub("_", key))


def metrics_of(event: Event) -> dict[str, float]:
    """Return the numbers of an event as MLflow metrics; `samples` and `tokens` serve as other x-axes."""
    if event["kind"] not in ("step", "evaluation", "checkpoint"):
        return {}
    renamed = {"samples": "train/samples", "tokens": "train/tokens", "seconds": "perf/checkpoint_s"}
    return {
        renamed.get(key, key): float(value)
        for key, value in event.items()
        if isinstance(value, int | float)
        and key not in _NOT_METRICS
        and not (key == "tokens" and event["kind"] != "step")
    }


def clamp_offset(run_dir: Path, event_log: Path) -> None:
    """Have everything sent again if the log is shorter than the offset: an older copy was put in its place.

    The old offset could point into the middle of a line, and sending twice is harmless.
    """
    path = run_dir / STATE_NAME
    # The state may be of a copy of the run that got further than this event log.
    state = _read_state(path)
    stat = status(event_log)
    size = 0 if stat is None else stat.st_size
    if state.get("offset", 0) > size:
        write_atomic(path, json.dumps(state | {"offset": 0}))


def _read_state(path: Path) -> State:
    state: State = read_json(path, missing={})
    return state
