"""Files of a folder, or that match a glob, as someone means them who names it in `data.path`."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from raymill.errors import DataError
from raymill.reading import entries, files_below, is_file, is_folder, status


def matches(pattern: str) -> tuple[Path, list[Path]]:
    """(the folder that names are relative to, files) of a folder, a file or a glob."""
    expanded = Path(os.path.expanduser(pattern))
    if is_folder(expanded):
        root = expanded.resolve()
        _refuse_all_splits(root)
        paths = files_below(root, _is_visible, links=True)
        return root, [path for path in paths if _is_visible(path) and not _is_cache(path)]
    if is_file(expanded):
        return expanded.resolve().parent, [expanded.resolve()]
    fixed = Path(*_leading_fixed(expanded.parts))
    root = fixed.resolve()
    hits = _globbed(root, expanded.parts[len(fixed.parts) :])
    # A file that is matched by a link, too, is one; what is linked from elsewhere goes by its link.
    places = ((hit.resolve(), hit) for hit in hits if is_file(hit))
    return root, [place if place.is_relative_to(root) else hit for place, hit in places]


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
    if not glob.has_magic(part):
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
            f"data.path={root / (splits[0] if splits else 'train')}, and perhaps another as "
            "data.validation.path."
        )


def _leading_fixed(parts: Sequence[str]) -> Iterator[str]:
    for part in parts[:-1]:
        if glob.has_magic(part):
            return
        yield part
