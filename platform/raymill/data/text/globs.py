"""Files of a folder, or that match a glob, as someone means them who names it in `data.path`."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from raymill.errors import DataError
from raymill.reading import entries, files_below, is_file, is_folder, status, user_path
from raymill.redaction import override


def matches(pattern: str) -> tuple[Path, list[Path]]:
    """(the folder that names are relative to, files) of a folder, a file or a glob.

    Links go by their own names, wherever they lead. What is there is no pattern: `[1]` is that folder.
    """
    given = user_path(pattern)
    if is_folder(given):
        root = given.resolve()
        _refuse_all_splits(root)
        paths = files_below(root, _is_visible, links=True)
        return root, [path for path in paths if _is_visible(path) and not _is_cache(path)]
    if is_file(given):
        root = given.parent.resolve()
        return root, [root / given.name]
    fixed = _leading_fixed(given.parts)
    root = fixed.resolve()
    hits = _globbed(root, given.parts[len(fixed.parts) :])
    return root, [hit for hit in hits if is_file(hit)]


def _is_visible(path: Path) -> bool:
    """Tell whether someone meant to give it: hidden files are editors' and file systems' droppings."""
    return not path.name.startswith(".")


def _globbed(folder: Path, pattern: Sequence[str]) -> Iterator[Path]:
    """Yield what lies below a folder and matches a glob's parts, as `glob` does; but where `glob` leaves a
    folder out that can't be listed, a StorageError is raised."""
    if not pattern:
        yield folder
        return
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
    """The folder and all below it, each once, wherever links lead to it."""
    found = status(folder)
    if found is None or (found.st_dev, found.st_ino) in seen:
        return
    seen.add((found.st_dev, found.st_ino))
    yield folder
    for path in entries(folder):
        if _is_visible(path) and is_folder(path):
            yield from _folders(path, seen)


def _is_cache(path: Path) -> bool:
    """Tell whether `datasets` left it beside a saved data set when it is mapped or filtered."""
    return path.name.startswith("cache-") and is_file(path.parent / "state.json")


def _refuse_all_splits(root: Path) -> None:
    """A folder of `DatasetDict.save_to_disk` holds training and test data side by side."""
    listing = root / "dataset_dict.json"
    if is_file(listing):
        splits = [path.name for path in entries(root) if is_folder(path)]
        raise DataError(
            f"{root} holds several splits ({', '.join(splits)}): give one of them, as in "
            f"{override('data.path', root / (splits[0] if splits else 'train'))}, and perhaps another as "
            "data.validation.path."
        )


def _leading_fixed(parts: Sequence[str]) -> Path:
    """The folders before the first pattern."""
    fixed = Path()
    for part in parts[:-1]:
        if glob.has_magic(part) and (part == "**" or status(fixed / part) is None):
            break
        fixed /= part
    return fixed
