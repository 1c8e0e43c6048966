"""Lineage of a model: itself, the version it was trained from, and so on, with their data and code."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.errors import RaymillError
from raymill.schema.sections import TrackingConfig
from raymill.track.marker import read_marker
from raymill.track.registry import ResolvedModel
from raymill.track.server import call, connect, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Longer chains are cut; a pipeline's has three links.
MOST_GENERATIONS = 16
_REGISTERED = "models:/"


def ancestry(model: ResolvedModel, tracking: TrackingConfig, root: Path) -> list[dict[str, object]]:
    """Return a model and its ancestors, each with `version`, and as far as known `parent`, `data_digests`,
    `code_commit`, `config_digest`, `step` and `tokens`.

    A parent that can't be found any more ends the chain; its name is the last `parent`.
    """
    marker = read_marker(model.folder)
    chain = [{"version": model.name, **_of_marker(marker)}]
    client: MlflowClient | None = None
    uri = tracking_uri(tracking, root)
    names = {model.name}
    while len(chain) < MOST_GENERATIONS:
        parent = chain[-1].get("parent")
        # A registry that was merged by hand may hold a circle.
        if not isinstance(parent, str) or parent in names:
            break
        names.add(parent)
        try:
            if parent.startswith(_REGISTERED):
                client = client or connect(tracking, root)
                known = _of_tags(call(partial(_tags, client, parent), uri))
            else:
                known = _of_marker(read_marker(Path(parent)))
        except RaymillError:
            break
        chain.append({"version": parent, **known})
    return chain


def _tags(client: MlflowClient, reference: str) -> Mapping[str, str]:
    name, _, version = reference.removeprefix(_REGISTERED).partition("/")
    return dict(client.get_model_version(name, version).tags)


def _of_marker(marker: Mapping[str, Any]) -> dict[str, object]:
    keys = ("parent", "data_digests", "code_commit", "config_digest", "checkpoint")
    return {key: marker[key] for key in keys if marker.get(key)}


def _of_tags(tags: Mapping[str, str]) -> dict[str, object]:
    named = ("parent", "code_commit", "config_digest")
    known: dict[str, object] = {
        key: tags[f"raymill.{key}"] for key in named if tags.get(f"raymill.{key}")
    }
    if digests := tags.get("raymill.data_digests"):
        known["data_digests"] = digests.split(",")
    for key in ("step", "tokens"):
        if tags.get(f"raymill.{key}", "").isdigit():
            known[key] = int(tags[f"raymill.{key}"])
    return known
