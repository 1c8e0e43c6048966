"""Plan of a preparation: its inputs, grouped into units. A unit is read by one task and becomes one
shard.

The plan depends only on names, sizes and `data.shard_input_bytes`, never on the number of tasks.
`records.py` reads the planned ranges.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from raymill.data.demo import stdlib_corpus
from raymill.data.sources.files import find_files
from raymill.data.sources.inputs import BY_RECORD, EMBEDDED_TEXT, InputRange, Unit
from raymill.data.sources.registry import format_named
from raymill.data.store.split import TRAIN, VALIDATION, held_out_groups
from raymill.errors import DataError
from raymill.schema.data_sections import DataConfig, RowsConfig


def plan_units(data: RowsConfig, seed: int) -> list[Unit]:
    """Find the inputs and group them into units of about `data.shard_input_bytes`, in the order of their
    names.

    Raises:
        DataError: a path matches nothing, or nothing would be held out.
        StorageError: a file can't be read, or a folder can't be listed.
    """
    own_validation = data.validation.path
    # A corpus holds out documents after its duplicates are known, and no files.
    is_corpus = isinstance(data, DataConfig) and data.has_corpus
    if isinstance(data, DataConfig) and data.source in EMBEDDED_TEXT:
        files = _stdlib_files(data, seed, split=own_validation is None and not is_corpus)
        if data.source == "demo":
            files = _demo_parts(files, data, seed)
    else:
        files = find_files(data.path or (), "data.path")
        if is_corpus and data.validation.group_column is None:
            pass
        elif own_validation is None and isinstance(data, DataConfig):
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


def no_held_out_message(what: str, column: str | None = None) -> str:
    """Explain what to do when a split would hold nothing out.

    `column` is the one that groups records, if there is one.
    """
    ways = (
        "provide more files, since only whole files are held out; set data.validation.group_column to a "
        "column of the records whose values keep related records together"
    )
    if column is not None:
        ways = (
            "raise data.validation.fraction; set data.validation.group_column to a column with more different "
            f"values than {column!r} has"
        )
    return (
        f"Nothing would be held out for validation: {what}. Three solutions: {ways}; or set "
        "data.validation.path to your own held-out set."
    )


def _stdlib_files(data: RowsConfig, seed: int, *, split: bool) -> list[InputRange]:
    corpus = stdlib_corpus.entries()
    fraction = data.validation.fraction if split else 0.0
    held_out = stdlib_corpus.held_out_families(corpus, fraction, seed)
    if split and not held_out:
        raise DataError(
            f"Nothing would be held out for validation: data.validation.fraction={fraction:g} of the "
            f"{len({entry.family for entry in corpus})} families of modules is none; raise it."
        )
    return [
        InputRange(
            entry.name,
            str(entry.path or ""),
            "stdlib",
            VALIDATION if entry.family in held_out else TRAIN,
            0,
            entry.size,
            entry.size,
            entry.path.stat().st_mtime_ns if entry.path else 0,
        )
        for entry in corpus
    ]


def _demo_parts(files: list[InputRange], data: RowsConfig, seed: int) -> list[InputRange]:
    """Replace the library's training files by the demonstration's excerpts and notes."""
    from raymill.data.demo.corpus import documents, parts

    files = [file for file in files if file.split != TRAIN]
    sizes = {
        name: sum(len(text.encode()) for text in documents(name))
        for name in parts(data.validation.fraction, seed)
    }
    notes = [InputRange(name, "", "demo", TRAIN, 0, size, size, 0) for name, size in sizes.items()]
    return [*files, *notes]


def _split_files(files: list[InputRange], data: DataConfig, seed: int) -> list[InputRange]:
    """Assign each file to a split; with a group column, records are assigned later."""
    column = data.validation.group_column
    if column is not None:
        by_file = [file for file in files if not format_named(file.format).has_columns]
        if by_file:
            raise DataError(
                f"data.validation.group_column={column!r} needs records with columns, but "
                f"{by_file[0].name} is plain text: prepare text files and record files apart, or "
                "leave group_column out."
            )
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
