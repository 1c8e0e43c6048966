"""Whether the inputs of a finished preparation are still the ones it read.

Size and modification time settle it at once where the sidecars still stand; where they don't
match, the bytes are digested again and compared with the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from raymill.data.demo import stdlib_corpus
from raymill.data.store.manifest import Prepared
from raymill.data.text.sources import EMBEDDED, Piece, Unit
from raymill.data.text.unit import UNITS_FOLDER, UnitSettings, unit_digest
from raymill.errors import DataError
from raymill.reading import MISSING, opened, read_text

READ_BYTES = 1 << 20
NAMED = 5


def refuse_changed_inputs(
    prepared: Prepared, units: Sequence[Unit], settings: UnitSettings
) -> None:
    """Raise DataError if files were added, removed or changed; prepared data isn't overwritten."""
    recorded = {
        (entry.path, entry.offset, entry.length): entry.sha256 for entry in prepared.manifest.inputs
    }
    planned = [piece for unit in units for piece in unit]
    before = {path for path, _, _ in recorded}
    now = {piece.name for piece in planned}
    changed = {
        piece.name for piece in planned if (piece.name, piece.offset, piece.length) not in recorded
    }
    for index, unit in enumerate(units):
        if changed or _untouched(prepared.folder, index, unit, settings):
            continue
        changed |= {
            piece.name
            for piece in unit
            # Embedded conversations are made, not read: the folder's name tells by which versions.
            if piece.format != EMBEDDED
            and recorded[piece.name, piece.offset, piece.length] != piece_sha256(piece)
        }
    differences = {"changed": changed & before, "added": now - before, "removed": before - now}
    listed = [f"{what}: {_some(names)}" for what, names in differences.items() if names]
    if listed:
        raise DataError(
            f"{prepared.folder} was prepared from other input than there is now "
            f"({'; '.join(listed)}). It isn't overwritten, since runs may have been trained on "
            "it: give the new text another data.name, or delete that folder if no run needs it."
        )


def piece_sha256(piece: Piece) -> str:
    """The digest that reading a piece would give."""
    digest = hashlib.sha256()
    if piece.format == "stdlib":
        digest.update(stdlib_corpus.read(piece.name).encode())
        return digest.hexdigest()
    if piece.format == "demo":
        from raymill.data.demo.corpus import documents

        digest.update("".join(documents(piece.name)).encode())
        return digest.hexdigest()
    left = piece.length
    with opened(Path(piece.path)) as file:
        file.seek(piece.offset)
        while left and (content := file.read(min(READ_BYTES, left))):
            digest.update(content)
            left -= len(content)
    return digest.hexdigest()


def _some(names: set[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(sorted(names)[:NAMED]) + more


def _untouched(folder: Path, index: int, unit: Unit, settings: UnitSettings) -> bool:
    """Whether the unit's sidecar names the same files, with the same sizes and times."""
    try:
        text = read_text(folder / UNITS_FOLDER / f"{index:05d}.json")
        return bool(json.loads(text)["unit_digest"] == unit_digest(index, unit, settings))
    except (*MISSING, ValueError, KeyError, TypeError):
        return False
