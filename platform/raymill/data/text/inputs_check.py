"""Check that the inputs of a finished preparation haven't changed.

Size and modification time, recorded in the sidecars, decide quickly; where they differ, the bytes
are hashed again and compared with the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from raymill.data.sources.inputs import EMBEDDED, InputRange, Unit
from raymill.data.sources.registry import format_named
from raymill.data.store.manifest import PreparedData
from raymill.data.text.unit import UNITS_FOLDER, UnitSettings, unit_digest
from raymill.errors import DataError
from raymill.reading import MISSING, read_text

NAMED = 5


def refuse_changed_inputs(
    prepared: PreparedData,
    units: Sequence[Unit],
    settings: UnitSettings,
    advice: str = "give the new text another data.name",
) -> None:
    """Raise DataError if files were added, removed or changed; `advice` is a part of its message.

    Prepared data is never overwritten, because runs may have been trained on it.
    """
    recorded = {
        (entry.path, entry.offset, entry.length): entry.sha256 for entry in prepared.manifest.inputs
    }
    planned = [span for unit in units for span in unit]
    before = {path for path, _, _ in recorded}
    now = {span.name for span in planned}
    changed = {
        span.name for span in planned if (span.name, span.offset, span.length) not in recorded
    }
    for index, unit in enumerate(units):
        # Hashing takes time, and one change is enough to refuse.
        if changed or _untouched(prepared.folder, index, unit, settings):
            continue
        changed |= {
            span.name
            for span in unit
            # Embedded conversations are generated, not read; the folder's name carries their version.
            if span.format != EMBEDDED
            and recorded[span.name, span.offset, span.length] != range_sha256(span)
        }
    differences = {"changed": changed & before, "added": now - before, "removed": before - now}
    listed = [f"{what}: {_some(names)}" for what, names in differences.items() if names]
    if listed:
        raise DataError(
            f"{prepared.folder} was prepared from other input than there is now "
            f"({'; '.join(listed)}). It isn't overwritten, since runs may have been trained on "
            f"it: {advice}, or delete that folder if no run needs it."
        )


def range_sha256(span: InputRange) -> str:
    """Return the digest that reading an input range would give."""
    digest = hashlib.sha256()
    for content in format_named(span.format).range_bytes(span):
        digest.update(content)
    return digest.hexdigest()


def _some(names: set[str]) -> str:
    """Name the first few."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more


def _untouched(folder: Path, index: int, unit: Unit, settings: UnitSettings) -> bool:
    """Return whether the unit's sidecar records the same files, with the same sizes and times."""
    try:
        text = read_text(folder / UNITS_FOLDER / f"{index:05d}.json")
        return bool(json.loads(text)["unit_digest"] == unit_digest(index, unit, settings))
    except (*MISSING, ValueError, KeyError, TypeError):
        return False
