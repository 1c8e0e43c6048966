"""The one door to MLflow: imported late (it takes seconds), quietly, and with short timeouts."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.errors import TrackingError
from raymill.redaction import redacted, redacted_value, secrets_of
from raymill.schema.sections import TrackingConfig
from raymill.schema.storage import sqlite_address

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow's own defaults block a caller for minutes when a server is down.
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"  # seconds, of any one request
_SHORT = {
    _TIMEOUT: "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_AUTO_LOGGING_WARNINGS": "true",
    # It prints the address with its password.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}

_SLOWEST_BYTES_PER_S = 10 * 2**20  # of a server that passes files on to its store
_LARGEST_FILE = 5 * 2**30  # bytes; exports are cut into files of that size


def tracking_uri(tracking: TrackingConfig, root: Path) -> str:
    """Where this configuration tracks to; a SQLite file under the storage root by default."""
    return tracking.uri or sqlite_address(database(root))


def database(root: Path) -> Path:
    """The file that is tracked to by default."""
    return root / "mlflow.db"


def is_local(uri: str) -> bool:
    """Whether the address is a file of this machine, not a server."""
    return uri.startswith(("sqlite:", "sqlite+"))


def connect(tracking: TrackingConfig, root: Path) -> MlflowClient:
    """A client; making one doesn't contact the server yet, but creates a local database's schema.

    Raises:
        TrackingError: the address can't be used.
    """
    for name, value in _SHORT.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

    uri = tracking_uri(tracking, root)
    if is_local(uri):
        root.mkdir(parents=True, exist_ok=True)
    return call(lambda: MlflowClient(tracking_uri=uri, registry_uri=uri), uri)


def call(work: Any, uri: str) -> Any:
    """Run one exchange with MLflow; whatever goes wrong becomes one sentence.

    MLflow raises its own exceptions, requests' and SQLAlchemy's alike: this is a process boundary.

    Raises:
        TrackingError: it didn't work, and why.
    """
    try:
        return work()
    except Exception as error:
        raise TrackingError(f"MLflow at {redacted_value(uri)}: {_reason(error, uri)}") from error


def _reason(error: Exception, uri: str) -> str:
    """An error's first line, unless a library has cut the address up and repeats a part of its secrets."""
    lines = redacted(str(error).strip()).splitlines()
    kind = type(error).__name__
    if not lines:
        return kind
    if any(word in lines[0] for word in secrets_of(uri)):
        return f"{kind} (its text repeats the address's secrets and is left out)"
    return lines[0][:500]


def upload(client: MlflowClient, run_id: str, folder: Path, place: str) -> None:
    """Store a folder's files as artifacts of a run; may raise what MLflow raises."""
    with patient(max((path.stat().st_size for path in folder.rglob("*")), default=0)):
        client.log_artifacts(run_id, str(folder), place)


@contextmanager
def patient(largest_file: int = _LARGEST_FILE) -> Iterator[None]:
    """Within the block a request may take as long as a server needs to store, or to fetch, a file of so many
    bytes before it answers. Other threads' requests wait as long for a server that hangs; training doesn't."""
    before = os.environ[_TIMEOUT]
    limit = int(before) + math.ceil(largest_file / _SLOWEST_BYTES_PER_S)
    os.environ[_TIMEOUT] = str(limit)
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = before


def experiment_id(client: MlflowClient, tracking: TrackingConfig, root: Path) -> str:
    """The experiment's id; made if there is none, with artifacts beside a local database."""
    found = client.get_experiment_by_name(tracking.experiment)
    if found is not None:
        return str(found.experiment_id)
    local = is_local(tracking_uri(tracking, root))
    location = (root / "mlartifacts").resolve().as_uri() if local else None
    return str(client.create_experiment(tracking.experiment, artifact_location=location))
