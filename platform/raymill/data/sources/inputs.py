"""Input files, and the plan that groups them into units: a unit is read by one task and becomes one
shard.

The plan depends only on names, sizes and `data.shard_input_bytes`, never on the number of tasks.
`records.py` reads the planned ranges.
"""

from __future__ import annotations

import errno
import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from raymill.data.demo import stdlib_corpus
from raymill.data.sources.globs import matches
from raymill.data.store.shards import parsed_footer, read_footer
from raymill.data.store.split import TRAIN, VALIDATION, held_out_groups
from raymill.errors import DataError
from raymill.reading import opened, status, user_path
from raymill.schema.data_sections import DataConfig, RowsConfig

Format = Literal[
    "txt",
    "md",
    "jsonl",
    "jsonl.gz",
    "jsonl.zst",
    "parquet",
    "arrow",
    "stdlib",
    "demo",
    "stdlib_chat",
]
FORMATS: tuple[str, ...] = get_args(Format)[:-3]
SPLITTABLE = ("txt", "md", "jsonl")
# A longer line is a bad record, because it would have to be held in memory completely.
LINE_BYTES = 64 * 2**20
# Embedded conversations are generated and not read.
EMBEDDED: Format = "stdlib_chat"
# These sources need no files of the user's.
EMBEDDED_TEXT = ("stdlib", "demo")
# The split is determined per record, by data.validation.group_column.
BY_RECORD = "by record"


@dataclass(frozen=True)
class InputRange:
    """Part of one input that a unit reads.

    `name` is unique and relative (no machine's paths); `offset` and `length` are bytes of the file,
    aligned to lines or, for Parquet, to the row groups `first_group` … `first_group + groups - 1`.
    `split` is "train", "validation" or BY_RECORD. `modified_ns` is 0 for texts that aren't files.
    """

    name: str
    path: str
    format: Format
    split: str
    offset: int
    length: int
    file_bytes: int
    modified_ns: int
    first_group: int = 0
    groups: int = 0


Unit = tuple[InputRange, ...]


def plan_units(data: RowsConfig, seed: int) -> list[Unit]:
    """Find the inputs and group them into units of about `data.shard_input_bytes`, in the order of their
    names.

    Raises:
        DataError: a path matches nothing, or nothing would be held out.
        StorageError: a file can't be read, or a folder can't be listed.
    """
    own_validation = data.validation.path
    if isinstance(data, DataConfig) and data.source in EMBEDDED_TEXT:
        files = _stdlib_files(data, seed, split=own_validation is None)
        if data.source == "demo":
            files = _demo_parts(files, data, seed)
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


def find_files(patterns: Sequence[str], key: str) -> list[InputRange]:
    """Find files of a known format below folders or by globs; return one range per file, sorted by
    name.

    Links are classified by their own endings. A name is `<folder's name>/<path below it>`, so that
    the same data at another path has the same names.
    """
    by_real_path: dict[str, InputRange] = {}
    roots: dict[Path, str] = {}
    for pattern in patterns:
        root, paths = matches(pattern)
        known = [(path, kind) for path in paths if (kind := format_of(path)) is not None]
        if not known:
            raise DataError(_nothing_found(key, pattern, root, paths))
        label = roots.setdefault(root, _unused(root.name or "root", roots.values()))
        for path, kind in sorted(known):
            name = f"{label}/{path.relative_to(root).as_posix()}"
            status = _status(path, key)
            size, real = status.st_size, os.path.realpath(path)
            span = InputRange(name, str(path), kind, TRAIN, 0, size, size, status.st_mtime_ns)
            # A file that links lead to as well counts once, under its own name if that is included.
            pair = (by_real_path.get(real, span), span)
            by_real_path[real] = min(pair, key=lambda candidate: candidate.path != real)
    return sorted(by_real_path.values(), key=lambda file: file.name)


def passed_over(data: RowsConfig) -> Counter[str]:
    """Count the files that aren't read because their ending is no known format, by ending ("":
    none)."""
    made = isinstance(data, DataConfig) and data.source in EMBEDDED_TEXT
    patterns = (*(() if made else data.path or ()), *(data.validation.path or ()))
    paths = {path: os.path.realpath(path) for pattern in patterns for path in matches(pattern)[1]}
    # A file of an unknown ending counts as read if a link with a known ending leads to it.
    by_link = {real for path, real in paths.items() if format_of(path) is not None}
    return Counter(
        path.suffix.lower()
        for path, real in paths.items()
        if format_of(path) is None and real not in by_link
    )


def _status(path: Path, key: str) -> os.stat_result:
    try:
        # File names become part of the manifest, which is UTF-8.
        str(path).encode("utf-8")
        state = status(path)
    except UnicodeEncodeError:
        raise DataError(
            f"{key}: the file name {os.fsencode(path)!r} isn't UTF-8; rename the file."
        ) from None
    if state is None:
        raise DataError(f"{key}: {path} can't be read ({os.strerror(errno.ENOENT)}).")
    return state


def format_of(path: Path) -> Format | None:
    """Return the input format of a file name's ending."""
    name = path.name.lower()
    for kind in FORMATS:
        if name.endswith(f".{kind}"):
            return kind  # type: ignore[return-value]
    return None


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


def _nothing_found(key: str, pattern: str, root: Path, paths: Sequence[Path]) -> str:
    endings = " ".join(f".{kind}" for kind in FORMATS)
    if paths:
        state = f"{len(paths)} files match, such as {paths[0].name}, but none ends in {endings}"
    elif status(root) is None or not (glob.has_magic(pattern) or status(user_path(pattern))):
        state = "it doesn't exist"
    else:
        state = f"no file matches (looked in {root})"
    return f"{key}: {pattern!r} gives no input: {state}. Known endings: {endings}."


def _unused(label: str, taken: Iterable[str]) -> str:
    names, count, candidate = set(taken), 1, label
    while candidate in names:
        count += 1
        candidate = f"{label}~{count}"
    return candidate


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
        by_file = [file for file in files if file.format in ("txt", "md")]
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
        if file.format == "parquet":
            yield from _parquet_ranges(file, unit_bytes)
        elif file.format in SPLITTABLE and file.length > unit_bytes:
            yield from _line_ranges(file, unit_bytes)
        else:
            yield file


def _line_ranges(file: InputRange, unit_bytes: int) -> Iterator[InputRange]:
    """Yield byte ranges of about unit_bytes that end after a newline or at the file's end."""
    with opened(Path(file.path)) as stream:
        start = 0
        while start < file.file_bytes:
            # A range ends after the line that contains its last byte.
            stream.seek(min(start + unit_bytes, file.file_bytes) - 1)
            stream.readline()
            stop = min(stream.tell(), file.file_bytes)
            yield replace(file, offset=start, length=stop - start)
            start = stop


def _parquet_ranges(file: InputRange, unit_bytes: int) -> Iterator[InputRange]:
    """Yield ranges of consecutive row groups of about unit_bytes."""
    path = Path(file.path)
    if not file.file_bytes:
        # The reader reports the empty file.
        yield file
        return
    try:
        metadata = parsed_footer(path, read_footer(path))
        spans = [_row_group_range(metadata.row_group(n)) for n in range(metadata.num_row_groups)]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} can't be read as Parquet: the name of a column isn't UTF-8 ({error.reason}); rewrite the "
            "file with another name."
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}") from error
    if not metadata.num_rows or not metadata.num_columns:
        # The reader reports the empty table.
        yield replace(file, groups=len(spans))
        return
    first, range_start, end = 0, -1, 0
    for group, (start, stop) in enumerate(spans):
        # A damaged footer may state positions that would be read as other data.
        if not 0 <= max(start, end) <= stop <= file.file_bytes:
            raise DataError(
                f"{path} can't be read as Parquet: row group {group} lies from byte {start} to {stop} of "
                f"{file.file_bytes}, past the end or overlapping another one."
            )
        range_start = start if range_start < 0 else range_start
        end = stop
        if end - range_start >= unit_bytes or group == len(spans) - 1:
            yield replace(
                file,
                offset=range_start,
                length=end - range_start,
                first_group=first,
                groups=group + 1 - first,
            )
            first, range_start = group + 1, -1


def _row_group_range(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Return the first byte of a row group's column chunks, and the byte after the last."""
    columns = [group.column(index) for index in range(group.num_columns)]
    starts = [
        min(filter(None, (column.dictionary_page_offset, column.data_page_offset)), default=0)
        for column in columns
    ]
    stops = [s + column.total_compressed_size for s, column in zip(starts, columns, strict=True)]
    return min(starts, default=0), max(stops, default=0)


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
