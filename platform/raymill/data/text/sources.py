"""Input files, and the plan that cuts them into units: what one task reads, and what becomes one
shard.

The plan depends on names, sizes and `data.shard_input_bytes` only, never on how many tasks run. Reading
the planned pieces is `records.py`'s work.
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
from raymill.data.store.shards import parsed_footer, read_footer
from raymill.data.store.split import TRAIN, VALIDATION, held_out_groups
from raymill.data.text.globs import matches
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
LINE_BYTES = 64 * 2**20  # a longer line is a bad record: it would have to be held in memory whole
EMBEDDED: Format = "stdlib_chat"  # of embedded conversations, which are made and not read
EMBEDDED_TEXT = ("stdlib", "demo")  # sources that have no files of the user's
BY_RECORD = "by record"  # the side is decided record by record, by data.validation.group_column


@dataclass(frozen=True)
class Piece:
    """What one unit reads of one input.

    `name` is unique and relative (no machine's paths); `offset` and `length` are bytes of the
    file, aligned to lines or, for Parquet, to the row groups `first_group` … `first_group + groups
    - 1`. `split` is "train", "validation" or BY_RECORD. `modified_ns` is 0 for texts that aren't
    files.
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


Unit = tuple[Piece, ...]


def plan_units(data: RowsConfig, seed: int) -> list[Unit]:
    """Find the inputs and cut them into units of about `data.shard_input_bytes`, in the order of their
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
        elif own_validation is None:  # conversations fall on a side each by itself
            files = [replace(file, split=BY_RECORD) for file in files]
    units = [*_units(_pieces(files, data.shard_input_bytes), data.shard_input_bytes)]
    if own_validation is not None:
        held_out = find_files(own_validation, "data.validation.path")
        _refuse_overlap(files, held_out)
        taken = {file.name for file in files}
        held_out = [
            replace(file, name=file.name if file.name not in taken else f"validation:{file.name}")
            for file in held_out
        ]
        pieces = (
            replace(piece, split=VALIDATION) for piece in _pieces(held_out, data.shard_input_bytes)
        )
        units += _units(pieces, data.shard_input_bytes)
    return units


def find_files(patterns: Sequence[str], key: str) -> list[Piece]:
    """Files below folders, or matching globs, of a known format; sorted by name; one whole-file
    piece each. Links are judged by their own endings.

    A name is `<folder's name>/<path below it>`, so that the same data elsewhere has the same names.
    """
    found: dict[str, Piece] = {}
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
            piece = Piece(name, str(path), kind, TRAIN, 0, size, size, status.st_mtime_ns)
            # A file that links lead to, too, is one, and goes by its own name where that is among them.
            pair = (found.get(real, piece), piece)
            found[real] = min(pair, key=lambda one: one.path != real)
    return sorted(found.values(), key=lambda file: file.name)


def passed_over(data: RowsConfig) -> Counter[str]:
    """Count files of the given folders, or matching the given globs, that aren't read, since their endings
    stand for no format; by ending, "" where there is none."""
    made = isinstance(data, DataConfig) and data.source in EMBEDDED_TEXT
    patterns = (*(() if made else data.path or ()), *(data.validation.path or ()))
    paths = {path: os.path.realpath(path) for pattern in patterns for path in matches(pattern)[1]}
    by_link = {real for path, real in paths.items() if format_of(path) is not None}
    return Counter(
        path.suffix.lower()
        for path, real in paths.items()
        if format_of(path) is None and real not in by_link
    )


def _status(path: Path, key: str) -> os.stat_result:
    try:
        str(path).encode("utf-8")
        found = status(path)
    except UnicodeEncodeError:
        raise DataError(
            f"{key}: the file name {os.fsencode(path)!r} isn't UTF-8; rename the file."
        ) from None
    if found is None:
        raise DataError(f"{key}: {path} can't be read ({os.strerror(errno.ENOENT)}).")
    return found


def format_of(path: Path) -> Format | None:
    """The input format that a file name's ending stands for."""
    name = path.name.lower()
    for kind in FORMATS:
        if name.endswith(f".{kind}"):
            return kind  # type: ignore[return-value]
    return None


def no_held_out_message(what: str, column: str | None = None) -> str:
    """Return what to do when a split would hold nothing out; `column` is what groups records, if anything."""
    ways = (
        "give more files, of which whole ones are held out, never parts; set data.validation.group_column to a "
        "column of the records whose values keep related ones together"
    )
    if column is not None:
        ways = (
            "raise data.validation.fraction; set data.validation.group_column to a column with more different "
            f"values than {column!r} has"
        )
    return (
        f"Nothing would be held out for validation: {what}. Three ways out: {ways}; or set "
        "data.validation.path to a held-out set of your own."
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


def _stdlib_files(data: RowsConfig, seed: int, *, split: bool) -> list[Piece]:
    corpus = stdlib_corpus.entries()
    fraction = data.validation.fraction if split else 0.0
    held_out = stdlib_corpus.held_out_families(corpus, fraction, seed)
    if split and not held_out:
        raise DataError(
            f"Nothing would be held out for validation: data.validation.fraction={fraction:g} of the "
            f"{len({entry.family for entry in corpus})} families of modules is none; raise it."
        )
    return [
        Piece(
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


def _demo_parts(files: list[Piece], data: RowsConfig, seed: int) -> list[Piece]:
    """What the demonstration trains on, excerpts of the library and notes; and all of what is held out."""
    from raymill.data.demo.corpus import documents, parts

    files = [one for one in files if one.split != TRAIN]
    sizes = {
        name: sum(len(text.encode()) for text in documents(name))
        for name in parts(data.validation.fraction, seed)
    }
    notes = [Piece(name, "", "demo", TRAIN, 0, size, size, 0) for name, size in sizes.items()]
    return [*files, *notes]


def _split_files(files: list[Piece], data: DataConfig, seed: int) -> list[Piece]:
    """Give each file its side; record files with a group column decide later."""
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
    # Empty files hold nothing out; the readers count and name them.
    full = [file.name for file in files if file.file_bytes]
    held_out = held_out_groups(full, data.validation.fraction, seed)
    if not held_out:
        raise DataError(
            no_held_out_message(f"there is no second file beside the {len(full)} with text")
        )
    return [replace(file, split=VALIDATION if file.name in held_out else TRAIN) for file in files]


def _refuse_overlap(training: Sequence[Piece], held_out: Sequence[Piece]) -> None:
    paths = {os.path.realpath(file.path) for file in training}
    twice = [file.name for file in held_out if os.path.realpath(file.path) in paths]
    if twice:
        raise DataError(
            f"data.validation.path and data.path share {len(twice)} file(s), such as {twice[0]}: "
            "held-out text must not be trained on. Move these files, or narrow one of the two "
            "paths."
        )


def _pieces(files: Iterable[Piece], unit_bytes: int) -> Iterator[Piece]:
    """Cut what is larger than a unit where its format allows."""
    for file in files:
        if file.format == "parquet":
            yield from _parquet_pieces(file, unit_bytes)
        elif file.format in SPLITTABLE and file.length > unit_bytes:
            yield from _line_pieces(file, unit_bytes)
        else:
            yield file


def _line_pieces(file: Piece, unit_bytes: int) -> Iterator[Piece]:
    """Byte ranges of about unit_bytes that end after a newline or at the file's end."""
    with opened(Path(file.path)) as stream:
        start = 0
        while start < file.file_bytes:
            stream.seek(min(start + unit_bytes, file.file_bytes) - 1)
            stream.readline()
            stop = min(stream.tell(), file.file_bytes)
            yield replace(file, offset=start, length=stop - start)
            start = stop


def _parquet_pieces(file: Piece, unit_bytes: int) -> Iterator[Piece]:
    """Consecutive row groups of about unit_bytes."""
    path = Path(file.path)
    if not file.file_bytes:
        yield file  # the reader names it as empty
        return
    try:
        metadata = parsed_footer(path, read_footer(path))
        ranges = [_row_group_range(metadata.row_group(n)) for n in range(metadata.num_row_groups)]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} can't be read as Parquet: the name of a column isn't UTF-8 ({error.reason}); write the "
            "file anew with another name."
        ) from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} can't be read as Parquet: {error}") from error
    if not metadata.num_rows or not metadata.num_columns:
        yield replace(file, groups=len(ranges))  # the reader names it, too
        return
    first, begin, end = 0, -1, 0
    for group, (start, stop) in enumerate(ranges):
        if not 0 <= max(start, end) <= stop <= file.file_bytes:
            raise DataError(
                f"{path} can't be read as Parquet: row group {group} lies from byte {start} to {stop} of "
                f"{file.file_bytes}, behind the end or over another one."
            )
        begin = start if begin < 0 else begin
        end = stop
        if end - begin >= unit_bytes or group == len(ranges) - 1:
            yield replace(
                file, offset=begin, length=end - begin, first_group=first, groups=group + 1 - first
            )
            first, begin = group + 1, -1


def _row_group_range(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """(first byte, byte after the last) of a row group's column chunks."""
    columns = [group.column(index) for index in range(group.num_columns)]
    starts = [
        min(filter(None, (column.dictionary_page_offset, column.data_page_offset)), default=0)
        for column in columns
    ]
    stops = [s + column.total_compressed_size for s, column in zip(starts, columns, strict=True)]
    return min(starts, default=0), max(stops, default=0)


def _units(pieces: Iterable[Piece], unit_bytes: int) -> Iterator[Unit]:
    """Consecutive pieces until they reach unit_bytes."""
    unit: list[Piece] = []
    size = 0
    for piece in pieces:
        if unit and size + piece.length > unit_bytes:
            yield tuple(unit)
            unit, size = [], 0
        unit.append(piece)
        size += piece.length
    if unit:
        yield tuple(unit)
