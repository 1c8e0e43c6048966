"""Connection to MLflow. It is imported late, since that takes seconds, silently, and with short timeouts."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from raymill.errors import TrackingError
from raymill.redaction import redacted, redacted_value, secrets_of
from raymill.schema.sections import TrackingConfig
from raymill.schema.storage import sqlite_address

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

# MLflow's own defaults block a caller for minutes when a server is down.
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"  # seconds, of a single request
_SHORT = {
    _TIMEOUT: "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_AUTO_LOGGING_WARNINGS": "true",
    # MLflow would print the address with its password.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}

_SLOWEST_BYTES_PER_S = 10 * 2**20  # assumed of a server that passes files on to its store
_LARGEST_FILE = 5 * 2**30  # bytes; exports are cut into files of that size


def tracking_uri(tracking: TrackingConfig, root: Path) -> str:
    """Return the address to track to; by default a SQLite file under the storage root."""
    return tracking.uri or sqlite_address(database(root))


def database(root: Path) -> Path:
    """Return the database that is tracked to by default."""
    return root / "mlflow.db"


def is_local(uri: str) -> bool:
    """Return True if the address is a file of this machine and not a server."""
    return uri.startswith(("sqlite:", "sqlite+"))


def connect(tracking: TrackingConfig, root: Path) -> MlflowClient:
    """Return a client; this doesn't contact a server yet, but creates a local database's schema.

    Raises:
        TrackingError: the address can't be used.
    """
    for name, value in _SHORT.items():
        # A user's own settings have priority.
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its import prints warnings about optional packages.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

    uri = tracking_uri(tracking, root)
    if is_local(uri):
        # SQLite creates its file, but not the folder.
        root.mkdir(parents=True, exist_ok=True)
    return call(lambda: MlflowClient(tracking_uri=uri, registry_uri=uri), uri)


def call(work: Callable[[], T], uri: str) -> T:
    """Run a request to MLflow; any error becomes a TrackingError of one line.

    MLflow raises its own exceptions as well as those of requests and SQLAlchemy, so all are caught.

    Raises:
        TrackingError: the request failed; with the reason.
    """
    try:
        return work()
    except Exception as error:
        raise TrackingError(f"MLflow at {redacted_value(uri)}: {_reason(error, uri)}") from error


def _reason(error: Exception, uri: str) -> str:
    """Return an error's first line, unless it contains a part of the address's secrets.

    Libraries quote parts of an address, which `redacted` doesn't recognize.
    """
    lines = redacted(str(error).strip()).splitlines()
    kind = type(error).__name__
    if not lines:
        return kind
    if any(word in lines[0] for word in secrets_of(uri)):
        return f"{kind} (its text repeats the address's secrets and is left out)"
    return lines[0][:500]


def upload(client: MlflowClient, run_id: str, folder: Path, artifact_path: str) -> None:
    """Store a folder's files as artifacts of a run; MLflow's errors are passed on."""
    with transfer_timeout(max((path.stat().st_size for path in folder.rglob("*")), default=0)):
        client.log_artifacts(run_id, str(folder), artifact_path)


@contextmanager
def transfer_timeout(largest_file: int = _LARGEST_FILE) -> Iterator[None]:
    """Allow requests within the block the time that a server needs to store or fetch a file of so many bytes.

    The timeout is the process's, so other threads' requests to a server that hangs wait as long. Training makes
    none.
    """
    before = os.environ[_TIMEOUT]
    limit = int(before) + math.ceil(largest_file / _SLOWEST_BYTES_PER_S)
    os.environ[_TIMEOUT] = str(limit)
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = before


def experiment_id(client: MlflowClient, tracking: TrackingConfig, root: Path) -> str:
    """Return the experiment's id; create it if there is none, with artifacts next to a local database."""
    experiment = client.get_experiment_by_name(tracking.experiment)
    if experiment is not None:
        return str(experiment.experiment_id)
    local = is_local(tracking_uri(tracking, root))
    location = (root / "mlartifacts").resolve().as_uri() if local else None
    return str(client.create_experiment(tracking.experiment, artifact_location=location))
