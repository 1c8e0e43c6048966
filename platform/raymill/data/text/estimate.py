"""Estimate of a preparation: hours, money and disk of the whole, from a thousandth of its input.

Parts of several units, chosen by a hash, are prepared for real in a folder that is deleted afterward, one
after the other; the seconds of each stage and the bytes that it leaves are scaled to all of the input.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from raymill.data.sources.inputs import Unit
from raymill.data.sources.planning import plan_units
from raymill.data.store.location import corpus_folder
from raymill.data.store.split import hash_fraction
from raymill.data.text.prepare import prepare_with_ray
from raymill.reading import files_below, read_text, status
from raymill.schema.jobs import PrepareJob
from raymill.schema.storage import StorageConfig

SHARE = 0.001
# Less would measure the start of processes.
LEAST_BYTES = 4 << 20
PARTS = 8
PART_BYTES = 1 << 16


@dataclass
class Estimate:
    """Measured seconds of one core by stage, and bytes left, of a sample of the input."""

    units: int
    input_bytes: int
    sample_parts: int
    sample_bytes: int
    documents: int = 0
    tokens: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    corpus_bytes: int = 0
    prepared_bytes: int = 0

    @property
    def scale(self) -> float:
        """Bytes of the whole for each byte of the sample."""
        return self.input_bytes / max(self.sample_bytes, 1)

    def lines(self, cores: float, price: float) -> Iterator[str]:
        """Describe the estimate; `price` is that of one core for an hour."""
        share = self.sample_bytes / max(self.input_bytes, 1)
        yield (
            f"Estimate from {self.sample_parts} parts with {self.sample_bytes / 1e6:.1f} of "
            f"{self.input_bytes / 1e6:,.1f} MB ({share:.2%})"
        )
        for stage, seconds in self.seconds.items():
            rate = self.sample_bytes / 1e6 / max(seconds, 1e-9)
            hours = seconds * self.scale / 3600
            yield f"  {stage:<22}{rate:8.2f} MB/s of input per core, {hours:,.2f} core-hours"
        core_hours = sum(self.seconds.values()) * self.scale / 3600
        hours = core_hours / max(cores, 1.0)
        yield f"  {'time':<22}{core_hours:,.2f} core-hours: {hours:,.2f} h on {cores:g} cores"
        yield f"  {'money':<22}{core_hours * price:,.2f}, at {price:g} for a core-hour"
        corpus, prepared = self.corpus_bytes * self.scale, self.prepared_bytes * self.scale
        yield f"  {'disk':<22}{corpus / 1e9:,.3f} GB of corpus, {prepared / 1e9:,.3f} GB of tokens"
        yield (
            f"  {'result':<22}{self.tokens * self.scale / 1e6:,.1f}M tokens of "
            f"{self.documents * self.scale:,.0f} documents, before duplicates that the sample misses"
        )


def estimate(job: PrepareJob) -> Estimate:
    """Prepare a sample on a running Ray, and return what it took.

    Raises:
        DataError: the input is missing or too bad, or nothing of the sample is left.
    """
    units = plan_units(job.data, job.seed)
    total = sum(span.length for unit in units for span in unit)
    chosen = sample_units(job, max(int(total * SHARE), LEAST_BYTES))
    size = sum(span.length for unit in chosen for span in unit)
    found = Estimate(len(units), total, len(chosen), size)
    with _scratch(job) as sample:
        prepared = prepare_with_ray(sample, chosen, tasks=1)
        if job.data.has_corpus:
            folder = corpus_folder(sample.data, sample.storage.folder)
            found.seconds |= _seconds_by_stage(folder)
            found.corpus_bytes = _bytes_below(folder)
        found.seconds["tokenize"] = sum(_seconds_by_stage(prepared.folder).values())
        found.prepared_bytes = _bytes_below(prepared.folder)
        found.documents = prepared.manifest.documents
        found.tokens = sum(split.tokens for split in prepared.manifest.splits.values())
    return found


def sample_units(job: PrepareJob, wanted: int) -> list[Unit]:
    """Choose small parts of the input by a hash of their names, until they have `wanted` bytes."""
    small = replace(job.data, shard_input_bytes=max(wanted // PARTS, PART_BYTES))
    units = plan_units(small, job.seed)
    ranked = sorted(units, key=lambda unit: hash_fraction(_name(unit), job.seed))
    chosen, size = list[Unit](), 0
    for unit in ranked:
        if size >= wanted and len(chosen) >= PARTS:
            break
        chosen.append(unit)
        size += sum(span.length for span in unit)
    # Units of one source stay together, in the order of the sources.
    order = {_name(unit): number for number, unit in enumerate(units)}
    return sorted(chosen, key=lambda unit: order[_name(unit)])


def _name(unit: Unit) -> str:
    return f"{unit[0].name}@{unit[0].offset}"


@contextmanager
def _scratch(job: PrepareJob) -> Iterator[PrepareJob]:
    """Yield the job with a storage root that is deleted afterward; what it would refuse is let through."""
    job.storage.folder.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="estimate-", dir=job.storage.folder))
    cleaning = {name: {**entry, "max_dropped": 1.0} for name, entry in job.data.cleaning.items()}
    data = replace(job.data, max_bad_fraction=1.0, cleaning=cleaning)
    try:
        yield replace(job, data=data, storage=StorageConfig(root=str(root), scratch=None))
    finally:
        shutil.rmtree(root)


def _seconds_by_stage(folder: Path) -> dict[str, float]:
    """Sum up the seconds that the sidecars of each stage note.

    Units are of about one size, and the first of a process loads its libraries and models; so the median
    stands for all.
    """
    seconds: dict[str, list[float]] = {}
    for path in files_below(folder):
        if path.suffix != ".json" or path.parent == folder:
            continue
        tree = json.loads(read_text(path))
        if "seconds" in tree:
            # Buckets of shuffled documents are others than the units that they come from.
            kind = "bucket" if path.name.startswith("bucket") else ""
            stage = path.parent.relative_to(folder).as_posix() + kind
            seconds.setdefault(stage, []).append(tree["seconds"])
    return {
        stage: statistics.median(seconds[stage]) * len(seconds[stage]) for stage in sorted(seconds)
    }


def _bytes_below(folder: Path) -> int:
    sizes = (status(path) for path in files_below(folder))
    return sum(state.st_size for state in sizes if state is not None)
