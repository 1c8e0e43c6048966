"""Plan of declared sources, for any number of files.

Names are listed here; sizes, Parquet footers and cuts at lines are found in tasks on the cluster, a few hundred
files at a time, and what they find is kept on disk. Units of a source that is declared earlier come first.
"""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np

from raymill.data import cluster_tasks
from raymill.data.sources.declared import DeclaredSource, declared_sources
from raymill.data.sources.embedded_plan import embedded_files
from raymill.data.sources.files import ListedFile, identity, listed_files, real_path
from raymill.data.sources.format import DamagedInputError
from raymill.data.sources.held_out import HeldOutFiles, refuse_plain_text
from raymill.data.sources.inputs import BY_RECORD, EMBEDDED_TEXT, InputRange, Unit
from raymill.data.sources.registry import format_named
from raymill.data.sources.spool import Spool
from raymill.data.sources.stable_units import stable_units
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.errors import DataError
from raymill.schema.data_sections import DataConfig

# Files that one task looks at.
BATCH_FILES = 256


@dataclass(frozen=True)
class _Batch:
    """Files of one source that a task plans; `rank` is the source's place in the order of priority."""

    number: int
    rank: int
    source: DeclaredSource
    files: tuple[ListedFile, ...]


class _PlannedFile(NamedTuple):
    """Ranges of a file. `identity` is shared by all names of the file, of which the one with the smallest
    `claim` counts."""

    ranges: tuple[InputRange, ...]
    identity: int
    claim: tuple[int, bool]


def plan_sources(
    data: DataConfig, seed: int, *, split: bool = True, tasks: int | None = None
) -> Sequence[Unit]:
    """Find the inputs and group them into units of about `data.shard_input_bytes`, which another file leaves
    as they are, except for the one that it falls into.

    Files of `data.validation.path` come first, so that their documents stay and duplicates of them go; without
    `split`, no others are held out. Tasks run where a cluster is connected, at most `tasks` at once.
    This process holds about 16 bytes of each file.

    Raises:
        DataError: a path matches nothing, or nothing would be held out.
        StorageError: a file can't be read, or a folder or store can't be listed.
    """
    problems: list[str] = []
    sources = declared_sources(data, problems)
    if problems:
        raise DataError("; ".join(problems))
    plan: Spool[Unit] = Spool()
    own = data.validation.path
    column = data.validation.group_column if own is None else None
    planner = _Planner(data, column, tasks)
    ranges: Iterable[InputRange]
    if data.source in EMBEDDED_TEXT:
        texts = embedded_files(data, seed, split=split and own is None)
        ranges = (replace(text, source=sources[0].source) for text in texts)
    else:
        planner.find(sources)
        ranges = planner.ranges(seed if split and own is None else None)
    if own is not None:
        held_out = _Planner(data, None, tasks)
        held_out.find([_held_out_source(data, sources)])
        _refuse_overlap(held_out, planner)
        own_ranges = (replace(span, split=VALIDATION) for span in held_out.ranges(None))
        for unit in stable_units(own_ranges, data.shard_input_bytes):
            plan.append(unit)
    for unit in stable_units(ranges, data.shard_input_bytes):
        plan.append(unit)
    return plan


def _held_out_source(data: DataConfig, sources: Sequence[DeclaredSource]) -> DeclaredSource:
    """Return the held-out set as a source, which is read as its data is, without what one source declares."""
    source = replace(
        sources[0].source,
        name=data.corpus or data.name,
        text_column=None,
        url_column=data.url_column,
        language_column=data.language_column,
        language="",
    )
    # Both inputs may have files of the same name.
    return DeclaredSource(
        "data.validation.path", "validation:", data.validation.path or (), source,
        is_declared=sources[0].is_declared,
    )  # fmt: skip


def _refuse_overlap(held_out: _Planner, training: _Planner) -> None:
    twice = np.isin(np.asarray(held_out.identities), np.asarray(training.identities))
    if twice.any():
        first = held_out.name_of(int(np.flatnonzero(twice)[0]))
        raise DataError(
            f"data.validation.path shares {int(twice.sum())} file(s) with the training data, such as {first}: "
            "held-out text must not be trained on. Move these files, or narrow one of the paths."
        )


class _Planner:
    """Files of sources, found in tasks and kept on disk in batches."""

    def __init__(self, data: DataConfig, group_column: str | None, tasks: int | None) -> None:
        self._data, self._group_column, self._tasks = data, group_column, tasks
        # Batches in the order in which tasks end, each with its number, and pickled by its task.
        self._found: Spool[bytes] = Spool()
        self._numbers = array("Q")
        self.identities = array("Q")

    def find(self, sources: Sequence[DeclaredSource]) -> None:
        """List the sources and plan their files."""
        shared = (self._data.shard_input_bytes, self._group_column)
        batches = _batches(sources)
        planned = (
            cluster_tasks.parallel(_plan_batch, batches, shared=shared, tasks=self._tasks)
            if cluster_tasks.is_connected()
            else (_plan_batch(batch, shared) for batch in batches)
        )
        for number, identities, files in planned:
            self._found.append(files)
            self._numbers.append(number)
            self.identities.frombytes(identities)

    def name_of(self, position: int) -> str:
        """Return the name of the file with this position in `identities`."""
        files = (file for batch in self._found for file in _files_of(batch))
        return next(islice(files, position, None)).ranges[0].name

    def ranges(self, seed: int | None) -> Iterator[InputRange]:
        """Yield the ranges of all files in order; with a `seed`, each has its split."""
        column = self._group_column
        held_out = None
        if seed is not None and column is None:
            held_out = HeldOutFiles(self._data.validation.fraction, seed)
            for file in self._files():
                held_out.add(file.ranges[0])
            held_out.check()
        for file in self._files():
            split = TRAIN if column is None else BY_RECORD
            if held_out is not None and held_out.holds(file.ranges[0]):
                split = VALIDATION
            for span in file.ranges:
                yield span if span.split == split else replace(span, split=split)

    def _files(self) -> Iterator[_PlannedFile]:
        """Yield the files in the order of their listing, those of several names once."""
        shared = self._shared_identities()
        claims: dict[int, tuple[int, bool]] = {}
        if shared:
            for batch in self._found:
                for file in _files_of(batch):
                    if file.identity in shared:
                        claim = claims.get(file.identity, file.claim)
                        claims[file.identity] = min(claim, file.claim)
        for number in np.argsort(np.asarray(self._numbers)).tolist():
            for file in _files_of(self._found[number]):
                if file.identity not in shared:
                    yield file
                elif claims.get(file.identity) == file.claim:
                    # The first of several equal claims counts.
                    del claims[file.identity]
                    yield file

    def _shared_identities(self) -> set[int]:
        values, counts = np.unique(np.asarray(self.identities), return_counts=True)
        return set(values[counts > 1].tolist())


def _batches(sources: Sequence[DeclaredSource]) -> Iterator[_Batch]:
    number = 0
    for rank, source in enumerate(sources):
        labels: dict[str, str] = {}
        files = (
            file
            for pattern in source.path
            for file in listed_files(pattern, source.key, source.kind_of, labels)
        )
        while batch := tuple(islice(files, BATCH_FILES)):
            yield _Batch(number, rank, source, batch)
            number += 1


def _files_of(batch: bytes) -> list[_PlannedFile]:
    files: list[_PlannedFile] = pickle.loads(batch)
    return files


def _plan_batch(batch: _Batch, shared: tuple[int, str | None]) -> tuple[int, bytes, bytes]:
    """Return the batch's number, its files' identities, and its files with their sizes, cut where they are
    larger than a unit."""
    unit_bytes, group_column = shared
    planned = []
    for listed in batch.files:
        file = listed.to_range(batch.source.key, batch.source.source)
        file = replace(file, name=f"{batch.source.prefix}{file.name}")
        if group_column is not None:
            refuse_plain_text(file, group_column)
        try:
            ranges = tuple(format_named(file.format).cut(file, unit_bytes))
        except DamagedInputError:
            # The reader reports it, among the bad records.
            ranges = (file,)
        real = real_path(file.path)
        planned.append(_PlannedFile(ranges, identity(real), (batch.rank, real != file.path)))
    identities = array("Q", [file.identity for file in planned])
    return batch.number, identities.tobytes(), pickle.dumps(planned)
