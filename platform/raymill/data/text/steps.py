"""Steps that preparations of every kind share: lock, parallel units, the limit on bad records,
cleanup."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from raymill.data import cluster_tasks
from raymill.data.sources.inputs import Unit
from raymill.data.store.facts import BadInputs, limited_bad_inputs
from raymill.data.store.lineage import lineage_path
from raymill.data.store.manifest import DataManifest
from raymill.data.text.live import LIVE_FOLDER
from raymill.data.text.report import PreparationProgress
from raymill.data.text.tasks import prepare_unit
from raymill.data.text.unit import UNITS_FOLDER, UnitResult, UnitSettings
from raymill.durable import exclusive_lock
from raymill.reading import entries
from raymill.schema.data_sections import RowsConfig

# Bad records that the manifest and the error name.
NAMED_BAD = 20


def lock_prepared_folder(folder: Path) -> AbstractContextManager[None]:
    """Hold a prepared folder's lock; see `exclusive_lock`."""
    return exclusive_lock(
        folder,
        f"Another preparation is writing {folder} right now; wait for it or end it first.",
    )


def run_units(units: Sequence[Unit], settings: UnitSettings, tasks: int | None) -> list[UnitResult]:
    """Run every unit and return the results in the plan's order."""
    results: dict[int, UnitResult] = {}
    with PreparationProgress(units, Path(settings.folder) / LIVE_FOLDER) as progress:
        for result, earlier in cluster_tasks.parallel(
            prepare_unit, enumerate(units), shared=settings, tasks=tasks
        ):
            results[result.index] = result
            progress.done(result, earlier=earlier)
    return [results[index] for index in range(len(units))]


def check_bad_inputs(
    data: RowsConfig, results: Sequence[UnitResult], quarantine: Path | None = None
) -> BadInputs:
    """Count the bad records; raise DataError if they exceed the configured fraction.

    `quarantine` is the file in which they are kept, if there is one.
    """
    examples = [text for result in results for text in result.bad_examples]
    return limited_bad_inputs(
        BadInputs(sum(result.bad for result in results), tuple(examples[:NAMED_BAD])),
        sum(result.records for result in results),
        data.max_bad_fraction,
        causes=causes_text(results),
        kept=f"\nThey are kept in {quarantine}" if quarantine else "",
    )


def causes_text(results: Sequence[UnitResult]) -> str:
    """Return ` (3 order, 1 empty)` where the kind of data counts causes, or nothing."""
    causes: Counter[str] = Counter()
    for result in results:
        causes.update(result.facts.get("causes", {}))
    listed = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
    return f" ({listed})" if listed else ""


def remove_leftovers(folder: Path, manifest: DataManifest, units: int) -> None:
    """Delete shards and sidecars of earlier tries that the manifest doesn't name."""
    named = {shard.path for split in manifest.splits.values() for shard in split.shards}
    text = manifest.text
    named |= {file.path for file in text.lineage} if text is not None else set()
    folders = ("train", "validation")
    for split in (*folders, *map(lineage_path, folders)):
        for path in entries(folder / split):
            if f"{split}/{path.name}" not in named:
                path.unlink()
    # A plan with fewer units leaves sidecars of higher numbers behind.
    current = {"tokenizer", *(f"{index:05d}" for index in range(units))}
    for path in entries(folder / UNITS_FOLDER):
        if path.name.split(".")[0] not in current:
            path.unlink()
