"""Find the input files that paths, folders and globs lead to, one range per file."""

from __future__ import annotations

import errno
import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from raymill.data.sources.globs import matches
from raymill.data.sources.inputs import EMBEDDED_TEXT, InputRange
from raymill.data.sources.registry import PATH_ENDINGS, path_kind
from raymill.data.store.split import TRAIN
from raymill.errors import DataError
from raymill.reading import status, user_path
from raymill.schema.data_sections import DataConfig, RowsConfig


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
        known = [(path, kind) for path in paths if (kind := path_kind(path)) is not None]
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
    by_link = {real for path, real in paths.items() if path_kind(path) is not None}
    return Counter(
        path.suffix.lower()
        for path, real in paths.items()
        if path_kind(path) is None and real not in by_link
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


def _nothing_found(key: str, pattern: str, root: Path, paths: Sequence[Path]) -> str:
    endings = " ".join(f".{kind}" for kind in PATH_ENDINGS)
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
