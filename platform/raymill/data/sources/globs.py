"""Find the files of a folder or a glob that a user names in `data.path`, also in object stores."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path

from raymill.errors import DataError
from raymill.reading import entries, files_below, is_file, is_folder, status, user_path
from raymill.redaction import override
from raymill.storage.bucket import StoredObject
from raymill.storage.bucket_file import object_of


def matches(pattern: str) -> tuple[Path, Iterator[Path]]:
    """Return the folder that names are relative to, and the files, of a folder, a file or a glob.

    Links keep their own names, wherever they lead. An existing path is never a pattern: `[1]` is
    that folder.
    """
    target = user_path(pattern)
    if is_folder(target):
        root = target.resolve()
        _refuse_all_splits(root)
        paths = files_below(root, _is_visible, links=True)
        return root, (path for path in paths if _is_visible(path) and not _is_cache(path))
    if is_file(target):
        root = target.parent.resolve()
        return root, iter([root / target.name])
    fixed = _leading_fixed(target.parts)
    root = fixed.resolve()
    hits = _globbed(root, target.parts[len(fixed.parts) :])
    return root, (hit for hit in hits if is_file(hit))


def _is_visible(path: Path) -> bool:
    """Return whether a file is visible: editors and file systems leave hidden files behind."""
    return not path.name.startswith(".")


def _globbed(folder: Path, pattern: Sequence[str]) -> Iterator[Path]:
    """Yield the paths below a folder that match a glob's parts, as `glob` does.

    Where `glob` skips a folder that can't be listed, this raises StorageError.
    """
    if not pattern:
        yield folder
        return
    # The pattern is matched one part at a time, from the outside in.
    part, rest = pattern[0], pattern[1:]
    if part == "**":
        for path in _folders(folder, set()):
            yield from _globbed(path, rest or ("*",))
        return
    if not glob.has_magic(part) or status(folder / part) is not None:
        yield from _globbed(folder / part, rest)
        return
    for path in entries(folder):
        if fnmatch(path.name, part) and (part.startswith(".") or _is_visible(path)):
            yield from _globbed(path, rest)


def _folders(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Yield the folder and all folders below it, each once, whichever links lead to it."""
    state = status(folder)
    # Links may lead in circles.
    if state is None or (state.st_dev, state.st_ino) in seen:
        return
    seen.add((state.st_dev, state.st_ino))
    yield folder
    for path in entries(folder):
        if _is_visible(path) and is_folder(path):
            yield from _folders(path, seen)


def _is_cache(path: Path) -> bool:
    """Return whether `datasets` left the file in a saved data set when mapping or filtering it."""
    return path.name.startswith("cache-") and is_file(path.parent / "state.json")


def _refuse_all_splits(root: Path) -> None:
    """Refuse a folder of `DatasetDict.save_to_disk`, which holds training and test data
    together."""
    listing = root / "dataset_dict.json"
    if is_file(listing):
        splits = [path.name for path in entries(root) if is_folder(path)]
        raise DataError(
            f"{root} holds several splits ({', '.join(splits)}): give one of them, as in "
            f"{override('data.path', root / (splits[0] if splits else 'train'))}, and perhaps another as "
            "data.validation.path."
        )


def _leading_fixed(parts: Sequence[str]) -> Path:
    """Return the folders before the first pattern."""
    fixed = Path()
    for part in parts[:-1]:
        if glob.has_magic(part) and (part == "**" or status(fixed / part) is None):
            break
        fixed /= part
    return fixed


def object_matches(uri: str) -> tuple[str, Iterator[tuple[str, StoredObject]]]:
    """Return the address that names are relative to, and (name, object) for an object, a folder or a glob in
    an object store.

    Patterns are matched as in folders; an object of exactly this key is never a pattern.

    Raises:
        StorageError: the store fails, or refuses the credentials; the iterator raises it, too.
    """
    bucket, key = object_of(uri.rstrip("/"))
    exact = bucket.find(key) if key and not uri.endswith("/") else None
    if exact is not None:
        folder, _, name = key.rpartition("/")
        return f"{bucket.uri}/{folder}", iter([(name, exact)])
    parts = key.split("/") if key else []
    fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    folder, pattern = "/".join(parts[:fixed]), parts[fixed:] or ["**"]
    names = ((one.key.removeprefix(folder).lstrip("/"), one) for one in bucket.objects(folder))
    return f"{bucket.uri}/{folder}", (pair for pair in names if _fits(pair[0].split("/"), pattern))


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a key match those of a pattern."""
    if not parts or not pattern:
        return not parts and not pattern
    if pattern[0] == "**":
        rest = pattern[1:] or ["*"]
        if _fits(parts, rest):
            return True
        return not parts[0].startswith(".") and _fits(parts[1:], pattern)
    hidden = parts[0].startswith(".") and not pattern[0].startswith(".")
    return not hidden and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
