"""Journal → MLflow: resumable, idempotent, and never in anybody's way.

The journal is the spool. What has been sent is remembered as a byte offset; sending a line twice is
harmless, since its metrics carry the line's own time and MLflow keeps one value for each (key, step,
time).
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.durable import write_atomic
from raymill.engine.resolved_run import ResolvedRun
from raymill.reading import read_json, status
from raymill.track.follow import Follower
from raymill.track.server import experiment_id

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE_NAME = "tracking.json"
_PARAMETER_LIMIT = 6000  # characters; MLflow would cut silently
_PARAMETERS_A_CALL = 100
_METRICS_A_CALL = 900
_NOT_IN_NAMES = re.compile(r"://|[^\w.\- :/]+")
_NOT_METRICS = ("step", "attempt", "time")


class Forwarder:
    """Sends a run's journal to MLflow. Every method may raise what MLflow raises; calling it again
    goes on where it stopped."""

    def __init__(self, resolved: ResolvedRun, client: MlflowClient) -> None:
        self.resolved = resolved
        self.client = client
        self._state_path = resolved.run_dir / STATE_NAME
        self._state = _read_state(self._state_path)
        self._follower = Follower(resolved.event_log, self._state.get("offset", 0))

    @property
    def run_id(self) -> str | None:
        found: str | None = self._state.get("run_id")
        return found

    @property
    def page(self) -> str:
        """Place of the run on MLflow's pages, below the server's address."""
        assert self.run_id is not None
        experiment = self.client.get_run(self.run_id).info.experiment_id
        return f"/experiments/{experiment}/runs/{self.run_id}"

    def begin(self) -> None:
        """Create the MLflow run, or continue the one this run has."""
        if self.run_id is None:
            job = self.resolved.job
            run = self.client.create_run(
                experiment_id(self.client, job.tracking, job.storage.folder),
                run_name=job.run.name,
                tags=self._tags(),
            )
            self._remember(run_id=run.info.run_id)
        else:
            self._go_on()
        if not self._state.get("described"):
            self._describe()
            self._remember(described=True)

    def _go_on(self) -> None:
        """The run that is there; where it isn't, as with another server or a database that is gone, all is sent
        anew."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._state.clear()
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
        """Parameters and dataset inputs, once a run."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        from raymill.data.store.manifest import load_prepared

        assert self.run_id is not None
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
        """Send the next lines; returns whether there were any."""
        from mlflow.entities import Metric

        assert self.run_id is not None
        offset = self._follower.offset
        try:
            metrics: list[Metric] = []
            artifacts: list[str] = []
            tables: list[str] = []
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
            self._remember(offset=self._follower.offset)
        except Exception:
            self._follower.offset = offset  # the same lines again, next time
            raise
        return True

    def _log_table(self, path: str) -> None:
        """A file of columns and data as a table that MLflow's page shows and compares.

        Not by `log_table`, which appends: sending it twice must be harmless.
        """
        assert self.run_id is not None
        self.client.log_artifact(self.run_id, str(self.resolved.run_dir / path), "answers")
        tag = "mlflow.loggedArtifacts"
        known = json.loads(self.client.get_run(self.run_id).data.tags.get(tag, "[]"))
        entry = {"path": f"answers/{Path(path).name}", "type": "table"}
        if entry not in known:
            self.client.set_tag(self.run_id, tag, json.dumps([*known, entry]))

    def log_system(self, values: Mapping[str, float], time_s: float, step: int) -> None:
        """Processor, memory and GPU readings."""
        from mlflow.entities import Metric

        assert self.run_id is not None
        metrics = [Metric(key, value, int(time_s * 1000), step) for key, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def end(self, status: str) -> None:
        """Close the MLflow run: "finished", "failed" or "stopped"."""
        assert self.run_id is not None
        outcome = {"finished": "FINISHED", "failed": "FAILED"}.get(status, "KILLED")
        self.client.set_terminated(self.run_id, status=outcome)

    def _remember(self, **values: Any) -> None:
        self._state |= values
        write_atomic(self._state_path, json.dumps(self._state))


def parameter_name(key: str) -> str:
    """A key as MLflow takes it: an address among a mapping's names holds what it refuses."""
    return posixpath.normpath(_NOT_IN_NAMES.sub("_", key))


def metrics_of(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an event as MLflow metrics; `samples` and `tokens` serve as other x-axes."""
    if event["kind"] not in ("step", "evaluation", "checkpoint"):
        return {}
    prefix = {"samples": "train/samples", "tokens": "train/tokens", "seconds": "perf/checkpoint_s"}
    return {
        prefix.get(key, key): float(value)
        for key, value in event.items()
        if isinstance(value, int | float)
        and key not in _NOT_METRICS
        and not (key == "tokens" and event["kind"] != "step")
    }


def clamp_offset(run_dir: Path, event_log: Path) -> None:
    """Where a journal from before was put in a newer one's place, all of it is sent again: twice harms nothing,
    and the middle of a line is no event."""
    path = run_dir / STATE_NAME
    state = _read_state(path)
    found = status(event_log)
    size = 0 if found is None else found.st_size
    if state.get("offset", 0) > size:
        write_atomic(path, json.dumps(state | {"offset": 0}))


def _read_state(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_json(path, missing={})
    return state
