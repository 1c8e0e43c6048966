"""One unit of preparation: its settings, its result, and the sidecar that a later try finds.

A unit leaves a sidecar `units/00000.json` when its shards are on disk; a preparation that was
killed continues from the sidecars whose digest still matches. Everything here is a pure function of
the unit, the tokenizer and the settings, so any process may run it, at any time and any number of
times.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol

from raymill.data.sources.inputs import Unit
from raymill.data.store.manifest import InputDigest, Shard
from raymill.durable import JsonObject, canonical_json, sha256_file, sha256_text, write_atomic
from raymill.reading import MISSING, read_text

UNITS_FOLDER = "units"
# Bad records that each unit names.
EXAMPLES = 20


class UnitSettings(Protocol):
    """Settings that all units of a preparation share, whatever its kind; a dataclass."""

    __dataclass_fields__: ClassVar[JsonObject]
    # Facts that a unit's result must have; one without them is of an earlier version.
    needed_facts: ClassVar[frozenset[str]]

    @property
    def folder(self) -> str:
        """Prepared folder."""
        ...

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Write the unit's shards."""
        ...


@dataclass(frozen=True)
class UnitResult:
    """Output and input of a unit.

    `bytes_read` are bytes of input, `records` includes bad ones; `facts` are additions of its kind,
    as JSON values.
    """

    index: int
    shards: dict[str, Shard]
    inputs: tuple[InputDigest, ...]
    documents: int
    records: int
    bad: int
    bad_examples: tuple[str, ...]
    bytes_read: int
    facts: JsonObject = field(default_factory=dict)


def unit_digest(index: int, unit: Unit, settings: UnitSettings) -> str:
    """Return the digest of a unit; equal ones give equal shards. Files count by size and
    modification time."""
    shared = asdict(settings)
    # The same unit in another folder has the same bytes.
    del shared["folder"]
    # Units that were finished before documents were shuffled keep their digests.
    if not shared.get("shuffle_documents"):
        shared.pop("shuffle_documents", None)
    if shared.get("packing") == "concatenate":
        del shared["packing"]
    # Every engine gives the same ids.
    shared.pop("engine", None)
    spans = [span.to_tree() for span in unit]
    return sha256_text(canonical_json({"index": index, "unit": spans, "settings": shared}))


def finished(index: int, unit: Unit, settings: UnitSettings) -> UnitResult | None:
    """Return the result of an earlier run of this unit, if it is complete and its shards are whole.

    Raises:
        StorageError: a file can't be read, so that nothing is known.
    """
    folder = Path(settings.folder)
    try:
        tree = json.loads(read_text(_sidecar(folder, index)))
        if tree["unit_digest"] != unit_digest(index, unit, settings):
            return None
        result = _result_from_tree(tree["result"])
        if not settings.needed_facts <= result.facts.keys():
            return None
        for shard in result.shards.values():
            if sha256_file(folder / shard.path) != shard.sha256:
                return None
        others = [packed["lineage"] for packed in result.facts.get("packed", {}).values()]
        for file in (*others, *result.facts.get("runs", ())):
            if sha256_file(folder / file["path"]) != file["sha256"]:
                return None
    except (*MISSING, ValueError, KeyError, TypeError):
        return None
    return result


def run_unit(index: int, unit: Unit, settings: UnitSettings) -> UnitResult:
    """Write the unit's shards, then its sidecar.

    Raises:
        DataError: an input is gone, has changed, or is damaged beyond single records.
    """
    started = time.monotonic()
    result = settings.work(index, unit)
    tree = {
        "unit_digest": unit_digest(index, unit, settings),
        "result": asdict(result),
        "seconds": time.monotonic() - started,
    }
    sidecar = _sidecar(Path(settings.folder), index)
    sidecar.parent.mkdir(exist_ok=True)
    write_atomic(sidecar, canonical_json(tree) + "\n")
    return result


def _sidecar(folder: Path, index: int) -> Path:
    return folder / UNITS_FOLDER / f"{index:05d}.json"


def _result_from_tree(tree: JsonObject) -> UnitResult:
    return UnitResult(
        **{
            **tree,
            "shards": {split: Shard(**shard) for split, shard in tree["shards"].items()},
            "inputs": tuple(InputDigest(**entry) for entry in tree["inputs"]),
            "bad_examples": tuple(tree["bad_examples"]),
        }
    )
