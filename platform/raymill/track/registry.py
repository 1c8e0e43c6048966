"""Model registry: registration of exported folders as versions, and resolution of references to models."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from raymill.checkpoint.retention import REGISTERED_NAME
from raymill.durable import write_atomic
from raymill.errors import ConfigError, StorageError, TrackingError
from raymill.reading import is_file, is_folder, read_json, user_path
from raymill.redaction import job_command
from raymill.schema.sections import TrackingConfig
from raymill.schema.storage import is_uri, store_problems
from raymill.storage.bucket import Bucket
from raymill.storage.mirror import Mirror
from raymill.track.flavor import model_kind, write_flavor
from raymill.track.marker import MARKER_NAME, read_marker
from raymill.track.server import call, connect, database, tracking_uri, transfer_timeout, upload

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from raymill.checkpoint.resume import VerifiedCheckpoint
    from raymill.track.forwarder import Forwarder

# Metrics that are repeated in a version's tags, so that versions can be compared at a glance.
TAGGED_METRICS = (
    "eval/bits_per_byte",
    "answers/f1",
    "answers/ended",
    "answers/refusal_f1",
    "pairs/reward/accuracy",
    "pairs/calibration_error",
    "prompts/reward",
    "prompts/kl",
)
# Stands for the last stage that is registered.
FURTHEST = "auto"
STAGES = ("pretrained", "sft", "aligned", "champion")  # aliases, in order
# Stricter than MLflow, whose client accepts names such as `m%2e` or with newlines.
_REFERENCE = re.compile(
    r"models:/(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)"
    r"(?:/(?P<version>\d+)|@(?P<alias>[A-Za-z0-9_][A-Za-z0-9._-]*))"
)


@dataclass(frozen=True)
class ResolvedModel:
    """A model on the disk, and a name that is pinned to it."""

    folder: Path
    name: str  # models:/name/version, or the folder
    data: tuple[str, ...] = ()  # prepared folders that it was trained on, if known


def register_export(
    forwarder: Forwarder,
    found: VerifiedCheckpoint,
    export: Path,
    metrics: Mapping[str, float],
    uri: str,
    suffix: str = "",
) -> str:
    """Register `export` as a version of the configured model (its name with `suffix`), with alias and tags.

    A checkpoint is registered once. The folder is copied into the run's artifacts, since `export/` changes when
    the run continues, and a version must not.

    Raises:
        TrackingError: MLflow can't be reached, or refused.
    """
    resolved = forwarder.resolved
    tracking = resolved.job.tracking
    name, alias = tracking.registered_model + suffix, tracking.alias
    record_path = resolved.run_dir / REGISTERED_NAME
    records = read_json(record_path, missing=[])
    client, run_id = forwarder.client, forwarder.run_id
    assert run_id is not None, "a forwarder that has begun has a run"
    # The same checkpoint gets no second version, but its alias is moved to the first.
    for record in records:
        if record["checkpoint_digest"] == found.manifest.digest and record["model"] == name:
            known = str(record["version"])
            if call(partial(_move_alias, client, name, alias, known), uri):
                return f"models:/{name}/{known} as {name}@{alias}"
    artifact_path = f"model{suffix}/{found.directory.name}"

    def register() -> str:
        source = f"{client.get_run(run_id).info.artifact_uri}/{artifact_path}"
        upload(client, run_id, export, artifact_path)
        _upload_flavor(client, run_id, export, artifact_path, source)
        _ensure_model(client, name)
        tags = _lineage_tags(forwarder, found, metrics)
        created = client.create_model_version(name, source, run_id=run_id, tags=tags)
        client.set_registered_model_alias(name, alias, created.version)
        return str(created.version)

    version = call(register, uri)
    records.append(
        {
            "model": name,
            "version": version,
            "checkpoint": f"checkpoints/{found.directory.name}",
            "checkpoint_digest": found.manifest.digest,
        }
    )
    # Kept with the run: retention spares registered checkpoints.
    write_atomic(record_path, json.dumps(records, indent=1))
    return f"models:/{name}/{version} as {name}@{alias}"


def _upload_flavor(
    client: MlflowClient, run_id: str, export: Path, artifact_path: str, source: str
) -> None:
    """Add the files by which MLflow's own tools load an export, if it is a whole model."""
    kind = model_kind(export)
    if kind is None:
        return
    # MLflow loads the tokenizer from this location for a request with stop words.
    location = unquote(urlsplit(source).path) if source.startswith("file:") else str(export)
    with TemporaryDirectory() as folder:
        write_flavor(
            export, kind, Path(folder), run_id=run_id, artifact_path=artifact_path, source=location
        )
        upload(client, run_id, Path(folder), artifact_path)


def _move_alias(client: MlflowClient, name: str, alias: str, version: str) -> bool:
    """Point the alias to a version; return False if the registry, which may be a new one, doesn't have it."""
    from mlflow.exceptions import MlflowException

    try:
        client.set_registered_model_alias(name, alias, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _lineage_tags(
    forwarder: Forwarder, found: VerifiedCheckpoint, metrics: Mapping[str, float]
) -> dict[str, str]:
    resolved, manifest = forwarder.resolved, found.manifest
    tags = {
        "raymill.run": str(resolved.job.run.name),
        "raymill.step": str(manifest.step),
        "raymill.tokens": str(manifest.tokens),
        "raymill.checkpoint": str(found.directory),
        "raymill.checkpoint_digest": manifest.digest,
        "raymill.data_digests": ",".join(manifest.data_digests),
        "raymill.data": ",".join(str(folder) for folder in resolved.folders),
        "raymill.tokenizer": manifest.tokenizer_fingerprint,
        "raymill.config_digest": manifest.config_digest,
        "raymill.code_commit": manifest.code_commit or "",
        "raymill.parent": manifest.parent or "",
        "raymill.parent_digest": manifest.parent_digest or "",
        "raymill.rl.reward": (resolved.rl and resolved.rl.reward_model) or "",
        "raymill.reward_digest": manifest.model_digests.get("reward.model", ""),
        **{
            f"raymill.{name.rpartition('/')[2]}": str(metrics[name])
            for name in TAGGED_METRICS
            if name in metrics
        },
    }
    return {key: value for key, value in tags.items() if value}


def resolve_model(
    reference: str, tracking: TrackingConfig, root: Path, key: str = "model"
) -> ResolvedModel:
    """Resolve a reference to a folder on this machine and a pinned name.

    A reference is a registry's (`models:/…`), a Hugging Face folder here or in an object store, or "auto", the
    last stage that is registered. `key` is the key under which the user gave it.

    Raises:
        ConfigError: the reference names nothing; lists the existing versions.
        DataError: the folder's raymill.json doesn't have the form of a marker.
        StorageError: the folder can't be read.
        TrackingError: the registry can't be reached.
    """
    # Resolved once, so that the run keeps the model that "auto" means now.
    if reference == FURTHEST:
        reference = _furthest(tracking, root)
    if is_uri(reference):
        if refused := store_problems(key, reference):
            raise ConfigError(refused)
        return _with_data(_fetched(reference, root, key), reference)
    if not reference.startswith("models:"):
        folder = user_path(reference)
        if not is_file(folder / "config.json"):
            raise ConfigError(
                [
                    f"{key}={reference}: there is no Hugging Face folder (one with a config.json); "
                    "expected such a folder, models:/name@alias or models:/name/3"
                ]
            )
        return _with_data(folder.resolve(), str(folder.resolve()))
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError([f"{key}={reference!r}: expected models:/name@alias or models:/name/3"])
    uri = tracking_uri(tracking, root)
    if uri == "none":
        raise ConfigError([f"{key}={reference}: tracking.uri=none has no registry; give a folder"])
    if tracking.uri is None and not is_file(database(root)):
        raise ConfigError(
            [
                f"{key}={reference}: there is no registry yet in {database(root)}; train a model first "
                f"({job_command('pipeline', 'experiment=demo')}), give tracking.uri, or a folder"
            ]
        )
    client = connect(tracking, root)
    version = _find_version(client, match, f"{key}={reference}", uri)
    folder = Path(call(lambda: _download(version.source, uri), uri))
    if not is_file(folder / "config.json"):
        raise TrackingError(f"{reference} points to {version.source}, which holds no model")
    return _with_data(folder, f"models:/{version.name}/{version.version}")


def _fetched(uri: str, root: Path, key: str) -> Path:
    """Fetch a model's folder from an object store, in its present state, and return the local copy."""
    bucket = Bucket(uri)
    if bucket.get("config.json") is None:
        raise ConfigError(
            [f"{key}={uri}: there is no Hugging Face folder (one with a config.json)"]
        )
    above, _, name = bucket.uri.rpartition("/")
    # A folder of a run is complete when its marker is there, which is uploaded last.
    ours = name in ("export", "adapter") and bool(Bucket(above).sizes("ledger"))
    if ours and bucket.get(MARKER_NAME) is None:
        raise ConfigError(
            [
                f"{key}={uri}: it isn't uploaded to the end; run the command of its run again to complete it"
            ]
        )
    # Named by its content, since other processes may be using an earlier copy.
    before = bucket.fingerprint()
    folder = root / "models" / before[:16]
    if not is_folder(folder):
        print(f"fetching {bucket.uri}", flush=True)
        draft = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
        try:
            Mirror(bucket, draft).pull()
            # Files of two states would make a model that never existed.
            if bucket.fingerprint() != before:
                raise StorageError(f"{bucket.uri} changed while it was fetched; try again")
            # Another process may have fetched it meanwhile.
            with suppress(OSError):
                draft.replace(folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return folder


def _furthest(tracking: TrackingConfig, root: Path) -> str:
    """Return the reference of the last registered stage; pretraining's if none is registered."""
    name, uri = tracking.registered_model, tracking_uri(tracking, root)
    first = f"models:/{name}@{STAGES[0]}"
    if uri == "none" or (tracking.uri is None and not is_file(database(root))):
        return first
    from mlflow.exceptions import MlflowException

    def aliases() -> dict[str, str]:
        try:
            return dict(connect(tracking, root).get_registered_model(name).aliases)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}

    known = call(aliases, uri)
    return next((f"models:/{name}@{s}" for s in reversed(STAGES) if s in known), first)


def _with_data(folder: Path, name: str) -> ResolvedModel:
    return ResolvedModel(folder, name, tuple(read_marker(folder).get("data", ())))


def _find_version(
    client: MlflowClient, match: re.Match[str], setting: str, uri: str
) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    def find() -> ModelVersion | None:
        try:
            if match["version"]:
                return client.get_model_version(match["name"], match["version"])
            return client.get_model_version_by_alias(match["name"], match["alias"])
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            return None

    version = call(find, uri)
    if version is not None:
        return version
    known = call(lambda: _known_references(client), uri)
    listed = ", ".join(known) if known else "nothing is registered yet"
    raise ConfigError([f"{setting}: the registry doesn't have it; there is: {listed}"])


def _known_references(client: MlflowClient) -> list[str]:
    known: list[str] = []
    for model in client.search_registered_models(max_results=20):
        known += [f"models:/{model.name}@{alias}" for alias in model.aliases]
        if not model.aliases:
            known += [f"models:/{model.name}/{v.version}" for v in model.latest_versions]
    return known


def _download(source: str, uri: str) -> str:
    from mlflow.artifacts import download_artifacts

    with transfer_timeout():
        return str(download_artifacts(artifact_uri=source, tracking_uri=uri))
