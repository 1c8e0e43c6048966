"""Find the input files that paths, folders and globs lead to, one range per file."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePath
from typing import NamedTuple

from raymill.data.sources.globs import matches, object_matches
from raymill.data.sources.inputs import EMBEDDED_TEXT, InputRange, Source
from raymill.data.sources.registry import DECLARABLE, PATH_ENDINGS, format_named, path_kind
from raymill.data.store.split import TRAIN
from raymill.errors import DataError
from raymill.reading import status, user_path
from raymill.schema.data_sections import DataConfig, RowsConfig
from raymill.schema.storage import is_uri

# Returns the `format` of a file by its name; None where it isn't read.
KindOf = Callable[[str], str | None]


class ListedFile(NamedTuple):
    """File of a known format. `name` is `<folder's name>/<path below it>`, so that the same data at another
    path has the same names; `size` and `modified_ns` are -1 where only the file itself tells them."""

    path: str
    name: str
    kind: str
    size: int = -1
    modified_ns: int = -1

    def to_range(self, key: str, source: Source) -> InputRange:
        """Return the whole file as a range; `key` is where the user named it."""
        size, modified_ns = self.size, self.modified_ns
        if size < 0:
            state = _status(Path(self.path), key)
            size, modified_ns = state.st_size, state.st_mtime_ns
        if not format_named(self.kind).extracts:
            source = _without_extraction(source)
        return InputRange(
            self.name, self.path, self.kind, TRAIN, 0, size, size, modified_ns, source=source
        )


@lru_cache(maxsize=64)
def _without_extraction(source: Source) -> Source:
    # All files of a source share the object, so that a plan holds it once a batch.
    return replace(source, extraction=None, license=None)


def real_path(path: str) -> str:
    """Return the path or address of a file under its own name, whichever links lead to it."""
    return path if is_uri(path) else os.path.realpath(path)


def identity(real: str) -> int:
    """Return a number of 64 bits for a file's `real_path`."""
    digest = hashlib.blake2b(os.fsencode(real), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def listed_files(
    pattern: str, key: str, kind_of: KindOf, labels: dict[str, str]
) -> Iterator[ListedFile]:
    """Yield the files of known formats in a folder or by a glob, in a fixed order that another file doesn't
    change. Links are classified by their own endings.

    `labels` are the names of the folders so far; files of another one get another label.

    Raises:
        DataError: the pattern leads to no such file.
        StorageError: a folder or a store can't be listed.
    """
    root, found = _objects(pattern) if is_uri(pattern) else _paths(pattern)
    label = labels.setdefault(root, _unused(PurePath(root).name or "root", labels.values()))
    others, first, known = 0, "", False
    for path, relative, size, modified_ns in found:
        kind = kind_of(relative.rpartition("/")[2])
        if kind is not None:
            known = True
            yield ListedFile(path, f"{label}/{relative}", kind, size, modified_ns)
        else:
            others += 1
            first = first or PurePath(relative).name
    if not known:
        raise DataError(_nothing_found(key, pattern, root, others, first, kind_of))


def find_files(patterns: Sequence[str], key: str) -> list[InputRange]:
    """Find files of `data.path` or of a held-out set; return one range per file, sorted by name."""
    by_real_path: dict[str, InputRange] = {}
    labels: dict[str, str] = {}
    for pattern in patterns:
        listed = listed_files(pattern, key, path_kind, labels)
        for file in sorted(listed, key=lambda file: PurePath(file.path).parts):
            span, real = file.to_range(key, Source()), real_path(file.path)
            # A file that links lead to as well counts once, under its own name if that is included.
            pair = (by_real_path.get(real, span), span)
            by_real_path[real] = min(pair, key=lambda candidate: candidate.path != real)
    return sorted(by_real_path.values(), key=lambda file: file.name)


def passed_over(data: RowsConfig) -> Counter[str]:
    """Count the files that aren't read because their ending is no known format, by ending ("":
    none)."""
    made = isinstance(data, DataConfig) and data.source in EMBEDDED_TEXT
    patterns = (*(() if made else data.path or ()), *(data.validation.path or ()))
    paths = {
        path: real_path(path)
        for pattern in patterns
        for path, *_ in (_objects(pattern) if is_uri(pattern) else _paths(pattern))[1]
    }
    # A file of an unknown ending counts as read if a link with a known ending leads to it.
    by_link = {real for path, real in paths.items() if path_kind(PurePath(path).name) is not None}
    return Counter(
        PurePath(path).suffix.lower()
        for path, real in paths.items()
        if path_kind(PurePath(path).name) is None and real not in by_link
    )


# Path or address, name below the root, size and modification time, which are -1 while unknown.
_Found = tuple[str, str, int, int]


def _paths(pattern: str) -> tuple[str, Iterator[_Found]]:
    root, paths = matches(pattern)
    # Parsing a path again would take longer than finding it.
    start = len(f"{root}/".replace("//", "/"))
    names = (str(path) for path in paths)
    return str(root), ((name, name[start:], -1, -1) for name in names)


def _objects(uri: str) -> tuple[str, Iterator[_Found]]:
    root, objects = object_matches(uri)
    bucket = "/".join(uri.split("/", 3)[:3])
    return root, ((f"{bucket}/{one.key}", name, one.size, one.modified_ns) for name, one in objects)


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


def _nothing_found(
    key: str, pattern: str, root: str, others: int, first: str, kind_of: KindOf
) -> str:
    if kind_of is path_kind:
        endings = " ".join(f".{kind}" for kind in PATH_ENDINGS)
        known, none = f"Known endings: {endings}.", f"none ends in {endings}"
        more = [
            form.name for form in DECLARABLE.values() if not set(form.endings) & {*PATH_ENDINGS}
        ]
        if more:
            known += f" In data.sources, a format can be declared as well: {', '.join(more)}."
    else:
        known, none = f"Formats: {', '.join(DECLARABLE)}.", "none has the endings of its format"
    if others:
        state = f"{others} files match, such as {first}, but {none}"
    elif is_uri(pattern):
        state = f"no object matches (looked in {root})"
    elif status(Path(root)) is None or not (glob.has_magic(pattern) or status(user_path(pattern))):
        state = "it doesn't exist"
    else:
        state = f"no file matches (looked in {root})"
    return f"{key}: {pattern!r} gives no input: {state}. {known}"


def _unused(label: str, taken: Iterable[str]) -> str:
    names, count, candidate = set(taken), 1, label
    while candidate in names:
        count += 1
        candidate = f"{label}~{count}"
    return candidate
