"""Jobs that prepare prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raymill.config import load
from raymill.data.store.manifest import PreparedData
from raymill.data.store.rows import Rows
from raymill.data.store.shards import row_groups
from raymill.schema.jobs import PromptsPrepareJob


def job(root: Path, parent: Path, *overrides: str) -> PromptsPrepareJob:
    """A fifth of the prompts held out, in groups of 4 rows."""
    made: PromptsPrepareJob = load(
        "prepare",
        ["kind=prompts", f"parent={parent}", f"storage.root={root}", "data.sequence_length=120",
         "data.row_group_rows=4", "data.validation.fraction=0.2", *overrides],
    )  # fmt: skip
    return made


def stored_rows(prepared: PreparedData) -> Iterator[tuple[str, Rows]]:
    """(split, one row) of everything in the shards, in the order it lies in."""
    manifest = prepared.manifest
    for split, content in manifest.splits.items():
        for shard in content.shards:
            path = prepared.shard_path(shard)
            for rows in row_groups(path, shard, manifest.dtype, manifest.kind):
                for row in range(len(rows)):
                    yield split, rows.part(row, row + 1)
