"""Jobs that prepare prompts, and how their units are worked off without Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from raymill.config import load
from raymill.data.store.manifest import PreparedData
from raymill.data.store.rows import Rows
from raymill.data.store.shards import row_groups
from raymill.data.text.sources import Unit
from raymill.data.text.tasks import prepare_unit
from raymill.data.text.unit import UnitResult, UnitSettings
from raymill.schema.jobs import PromptsPrepareJob


def job(root: Path, parent: Path, *overrides: str) -> PromptsPrepareJob:
    """A fifth of the prompts held out, in groups of 4 rows."""
    made: PromptsPrepareJob = load(
        "prepare",
        ["kind=prompts", f"parent={parent}", f"storage.root={root}", "data.sequence_length=120",
         "data.row_group_rows=4", "data.validation.fraction=0.2", *overrides],
    )  # fmt: skip
    return made


def one_after_the_other(
    units: Sequence[Unit], settings: UnitSettings, tasks: int | None
) -> list[UnitResult]:
    """In place of `run_units`."""
    return [prepare_unit(item, settings)[0] for item in enumerate(units)]


def stored_rows(prepared: PreparedData) -> Iterator[tuple[str, Rows]]:
    """(split, one row) of everything in the shards, in the order it lies in."""
    manifest = prepared.manifest
    for split, content in manifest.splits.items():
        for shard in content.shards:
            path = prepared.shard_path(shard)
            for rows in row_groups(path, shard, manifest.dtype, manifest.kind):
                for row in range(len(rows)):
                    yield split, rows.part(row, row + 1)
