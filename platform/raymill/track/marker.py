"""raymill.json beside a model's files: what they were exported from, and their sha256.

What it says of the weights is true of the bytes that it vouches for and of no others, so these are read again
whenever something is concluded from it.
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


def write_marker(folder: Path, lineage: Mapping[str, Any]) -> None:
    """Vouch for all files that are in an exported folder now."""
    names = [path.name for path in entries(folder) if path.name != MARKER_NAME and is_file(path)]
    marker = {**lineage, _FILES: _digests(folder, names)}
    write_atomic(folder / MARKER_NAME, json.dumps(marker, indent=1))


def read_marker(folder: Path) -> dict[str, Any]:
    """Return what an export of ours says of itself; nothing where a folder is none.

    Raises:
        DataError: it isn't what an export writes.
        StorageError: it can't be read.
    """
    found = read_json(folder / MARKER_NAME, missing={})
    if not isinstance(found, dict) or not isinstance(found.get(_FILES, {}), dict):
        raise DataError(
            f"{folder / MARKER_NAME} isn't what an export writes: it was damaged or changed; restore it, or "
            "delete it if the folder is to count as any other model's"
        )
    return found


def is_exported(folder: Path, lineage: Mapping[str, Any]) -> bool:
    """Tell whether a folder was exported from this, and every one of its files is still as it was then.

    Raises:
        StorageError: that can't be known.
    """
    try:
        marker = read_marker(folder)
    except DataError:
        return False
    files = marker.pop(_FILES, {})
    names = [name for name in files if is_file(folder / name)]
    return bool(files) and marker == lineage and _digests(folder, names) == files


def weights_digest(folder: Path) -> str:
    """sha256 of what decides what a model computes: the bytes of its weights' files and its config.json.

    Equal models in other files, such as an fp32 and a bf16 export, differ. Files of an export that aren't those
    that were exported are told of on standard error.

    Raises:
        DataError: raymill.json isn't what an export writes.
        StorageError: a file can't be read.
    """
    names = [
        path.name
        for path in entries(folder)
        if path.suffix in _WEIGHTS or path.name == "config.json"
    ]
    found = _digests(folder, names)
    exported: dict[str, str] = read_marker(folder).get(_FILES, {})
    changed = [name for name, sha256 in found.items() if exported.get(name, sha256) != sha256]
    if changed:
        print(
            f"warning: {folder}: {', '.join(changed)}: not as exported, says {MARKER_NAME}; what is trained "
            "from here on stands on these bytes, and its lineage names them. Restore the files if nobody meant "
            "to change them",
            file=sys.stderr,
            flush=True,
        )
    return sha256_json(found)


def _digests(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return dict(zip(names, sha256_files([folder / name for name in names]), strict=True))
