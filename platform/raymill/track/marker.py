"""Marker of an exported model, raymill.json: the origin of its files, and their sha256.

Its statements hold only for files with these digests, so the files are hashed again before the marker is relied
on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymill.durable import sha256_files, sha256_json, write_atomic
from raymill.errors import DataError
from raymill.reading import entries, is_file, read_json

MARKER_NAME = "raymill.json"
_FILES = "files"  # name → sha256
_WEIGHTS = (".safetensors", ".bin")


def write_marker(
    folder: Path, lineage: Mapping[str, object], known: Mapping[str, str] | None = None
) -> None:
    """Write the marker of an exported folder, with the digests of all its files.

    `known` are those of files that were hashed as they were written.
    """
    known = known or {}
    names = [path.name for path in entries(folder) if path.name != MARKER_NAME and is_file(path)]
    unknown = [name for name in names if name not in known]
    marker = {**lineage, _FILES: dict(sorted((dict(known) | _digests(folder, unknown)).items()))}
    write_atomic(folder / MARKER_NAME, json.dumps(marker, indent=1))


def read_marker(folder: Path) -> dict[str, Any]:
    """Return a folder's marker; empty if it has none.

    Raises:
        DataError: the file doesn't have the form of a marker.
        StorageError: the file can't be read.
    """
    marker = read_json(folder / MARKER_NAME, missing={})
    if not isinstance(marker, dict) or not isinstance(marker.get(_FILES, {}), dict):
        raise DataError(
            f"{folder / MARKER_NAME} isn't the marker of an export: it was damaged or changed; restore it, or "
            "delete it to use the folder as a model of unknown origin"
        )
    return marker


def is_exported(folder: Path, lineage: Mapping[str, object]) -> bool:
    """Return True if a folder was exported from this origin and none of its files has changed since.

    Raises:
        StorageError: a file can't be read.
    """
    try:
        marker = read_marker(folder)
    except DataError:
        return False
    files = marker.pop(_FILES, {})
    # A file that was deleted has no digest, so the comparison fails as it should.
    names = [name for name in files if is_file(folder / name)]
    return bool(files) and marker == lineage and _digests(folder, names) == files


def weights_digest(folder: Path) -> str:
    """Return the sha256 over a model's files of weights and its config.json.

    Equal models in different files, such as an fp32 and a bf16 export, have different digests. If files of an
    export were changed after that, a warning goes to standard error.

    Raises:
        DataError: raymill.json doesn't have the form of a marker.
        StorageError: a file can't be read.
    """
    digests = _digests(folder, _weight_files(folder))
    exported: dict[str, str] = read_marker(folder).get(_FILES, {})
    changed = [name for name, sha256 in digests.items() if exported.get(name, sha256) != sha256]
    if changed:
        print(
            f"warning: {folder}: {', '.join(changed)} changed since the export ({MARKER_NAME}); models trained "
            "from it start from the changed files, and their lineage has the changed digest. Restore the files "
            "if the change wasn't intended",
            file=sys.stderr,
            flush=True,
        )
    return sha256_json(digests)


def verified_digest(folder: Path) -> str:
    """Return `weights_digest` of a folder whose files are all as they were exported.

    Raises:
        DataError: a file was changed or is missing, or raymill.json doesn't have the form of a marker.
        StorageError: a file can't be read.
    """
    exported: dict[str, str] = read_marker(folder).get(_FILES, {})
    missing = [name for name in exported if not is_file(folder / name)]
    present = [name for name in exported if name not in missing]
    found = _digests(folder, present) | _digests(
        folder, [name for name in _weight_files(folder) if name not in exported]
    )
    changed = [name for name in present if found[name] != exported[name]]
    for what, names in (("missing", missing), ("changed since the export", changed)):
        if names:
            raise DataError(
                f"{folder}: {', '.join(sorted(names))} {'is' if len(names) == 1 else 'are'} {what}; restore "
                f"the folder, or delete its {MARKER_NAME} to use it as a model of unknown origin"
            )
    return sha256_json({name: found[name] for name in _weight_files(folder)})


def _weight_files(folder: Path) -> list[str]:
    return [
        path.name
        for path in entries(folder)
        if path.suffix in _WEIGHTS or path.name == "config.json"
    ]


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return dict(zip(names, sha256_files([folder / name for name in names]), strict=True))
