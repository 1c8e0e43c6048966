"""Steps that preparations of every kind share: one writer, units in parallel, judging what was bad."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from raymill.data.store.manifest import BadInputs, Manifest
from raymill.data.text.report import Progress
from raymill.data.text.sources import Unit
from raymill.data.text.tasks import do_unit, parallel
from raymill.data.text.unit import UNITS_FOLDER, UnitResult, UnitSettings
from raymill.durable import only_one
from raymill.errors import DataError
from raymill.reading import entries
from raymill.schema.data_sections import RowsConfig

NAMED_BAD = 20  # bad records named in the manifest and in the refusal


def only_writer(folder: Path) -> AbstractContextManager[None]:
    """Hold a prepared folder's lock; see `only_one`."""
    return only_one(
        folder,
        f"Another preparation is writing {folder} right now; wait for it or end it first.",
    )


def run_units(units: Sequence[Unit], settings: UnitSettings, tasks: int | None) -> list[UnitResult]:
    """Every unit's result in the plan's order."""
    results: dict[int, UnitResult] = {}
    with Progress(units) as progress:
        for result, earlier in parallel(do_unit, [*enumerate(units)], shared=settings, tasks=tasks):
            results[result.index] = result
            progress.done(result, earlier=earlier)
    return [results[index] for index in range(len(units))]


def judged_bad_inputs(
    data: RowsConfig, results: Sequence[UnitResult], quarantine: Path | None = None
) -> BadInputs:
    """Count the bad records; raise DataError if they are more than the configured fraction.

    `quarantine`: where they are all kept, if they are.
    """
    count = sum(result.bad for result in results)
    records = sum(result.records for result in results)
    examples = tuple(text for result in results for text in result.bad_examples)[:NAMED_BAD]
    if count > data.max_bad_fraction * records:
        named = "\n".join(f"  {text}" for text in examples)
        more = f"\n  … and {count - len(examples)} more" if count > len(examples) else ""
        kept = f"\nThey are kept in {quarantine}" if quarantine else ""
        raise DataError(
            f"{count} of {records} records can't be used{causes_text(results)}, more than "
            f"data.max_bad_fraction={data.max_bad_fraction:g} allows:\n{named}{more}{kept}\n"
            "Mend or remove them, or raise data.max_bad_fraction."
        )
    return BadInputs(count, examples)


def causes_text(results: Sequence[UnitResult]) -> str:
    """` (3 order, 1 empty)`, where the kind of data counts causes."""
    causes: Counter[str] = Counter()
    for result in results:
        causes.update(result.facts.get("causes", {}))
    listed = ", ".join(f"{count} {cause}" for cause, count in causes.most_common())
    return f" ({listed})" if listed else ""


def remove_leftovers(folder: Path, manifest: Manifest, units: int) -> None:
    """Delete shards and sidecars of earlier tries that the manifest doesn't name."""
    named = {shard.path for split in manifest.splits.values() for shard in split.shards}
    for split in ("train", "validation"):
        for path in entries(folder / split):
            if f"{split}/{path.name}" not in named:
                path.unlink()
    current = {"tokenizer", *(f"{index:05d}" for index in range(units))}
    for path in entries(folder / UNITS_FOLDER):
        if path.name.split(".")[0] not in current:
            path.unlink()
