"""Plan of a preparation: its inputs, grouped into units. A unit is read by one task and becomes one
shard.

The plan depends only on names, sizes and `data.shard_input_bytes`, never on the number of tasks.
`records.py` reads the planned ranges.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from raymill.data.sources.embedded_plan import embedded_files
from raymill.data.sources.files import find_files
from raymill.data.sources.held_out import no_held_out_message, refuse_plain_text
from raymill.data.sources.inputs import BY_RECORD, EMBEDDED_TEXT, InputRange, Unit
from raymill.data.sources.registry import format_named
from raymill.data.sources.source_plan import plan_sources
from raymill.data.store.split import TRAIN, VALIDATION, held_out_groups
from raymill.errors import DataError
from raymill.schema.data_sections import DataConfig, RowsConfig


def plan_units(data: RowsConfig, seed: int) -> Sequence[Unit]:
    """Find the inputs and group them into units of about `data.shard_input_bytes`, in the order of their
    names, or of the declared sources.

    Raises:
        DataError: a path matches nothing, or nothing would be held out.
        StorageError: a file can't be read, or a folder can't be listed.
    """
    if isinstance(data, DataConfig) and (data.sources or data.has_corpus):
        # A corpus holds out documents after its duplicates are known, and no files.
        return plan_sources(data, seed, split=not data.has_corpus)
    own_validation = data.validation.path
    if isinstance(data, DataConfig) and data.source in EMBEDDED_TEXT:
        files = embedded_files(data, seed, split=own_validation is None)
    else:
        files = find_files(data.path or (), "data.path")
        if own_validation is None and isinstance(data, DataConfig):
            files = _split_files(files, data, seed)
        # Conversations are assigned to a split one by one.
        elif own_validation is None:
            files = [replace(file, split=BY_RECORD) for file in files]
    units = [*_units(_cut(files, data.shard_input_bytes), data.shard_input_bytes)]
    if own_validation is not None:
        held_out = find_files(own_validation, "data.validation.path")
        _refuse_overlap(files, held_out)
        # Both inputs may have files of the same name.
        taken = {file.name for file in files}
        held_out = [
            replace(file, name=file.name if file.name not in taken else f"validation:{file.name}")
            for file in held_out
        ]
        spans = (replace(span, split=VALIDATION) for span in _cut(held_out, data.shard_input_bytes))
        units += _units(spans, data.shard_input_bytes)
    return units


def _split_files(files: list[InputRange], data: DataConfig, seed: int) -> list[InputRange]:
    """Assign each file to a split; with a group column, records are assigned later."""
    if data.validation.group_column is not None:
        for file in files:
            refuse_plain_text(file, data.validation.group_column)
        return [replace(file, split=BY_RECORD) for file in files]
    # Holding out an empty file would hold out nothing; the readers report empty files.
    full = [file.name for file in files if file.file_bytes]
    held_out = held_out_groups(full, data.validation.fraction, seed)
    if not held_out:
        raise DataError(no_held_out_message(f"there are not two files with text, but {len(full)}"))
    return [replace(file, split=VALIDATION if file.name in held_out else TRAIN) for file in files]


def _refuse_overlap(training: Sequence[InputRange], held_out: Sequence[InputRange]) -> None:
    paths = {os.path.realpath(file.path) for file in training}
    twice = [file.name for file in held_out if os.path.realpath(file.path) in paths]
    if twice:
        raise DataError(
            f"data.validation.path and data.path share {len(twice)} file(s), such as {twice[0]}: "
            "held-out text must not be trained on. Move these files, or narrow one of the two "
            "paths."
        )


def _cut(files: Iterable[InputRange], unit_bytes: int) -> Iterator[InputRange]:
    """Cut files that are larger than a unit, where their format allows it."""
    for file in files:
        yield from format_named(file.format).cut(file, unit_bytes)


def _units(spans: Iterable[InputRange], unit_bytes: int) -> Iterator[Unit]:
    """Group consecutive ranges until they reach unit_bytes."""
    unit: list[InputRange] = []
    size = 0
    for span in spans:
        if unit and size + span.length > unit_bytes:
            yield tuple(unit)
            unit, size = [], 0
        unit.append(span)
        size += span.length
    if unit:
        yield tuple(unit)
