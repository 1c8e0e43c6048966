"""Files that are held out for validation, and what to do where none would be."""

from __future__ import annotations

from dataclasses import dataclass

from raymill.data.sources.inputs import InputRange
from raymill.data.sources.registry import format_named
from raymill.data.store.split import hash_fraction
from raymill.errors import DataError


@dataclass
class HeldOutFiles:
    """Choice of the files to hold out, as `store.split.held_out_groups` makes it, of any number of files."""

    fraction: float
    seed: int
    _files: int = 0
    _chosen: int = 0
    _lowest: float = 1.0
    _highest: float = 0.0

    def add(self, file: InputRange) -> None:
        """Take a file into account. Holding out an empty file would hold out nothing."""
        if not file.file_bytes:
            return
        place = hash_fraction(file.name, self.seed)
        self._files += 1
        self._chosen += place < self.fraction
        self._lowest, self._highest = min(place, self._lowest), max(place, self._highest)

    def check(self) -> None:
        """Raise DataError if nothing would be held out."""
        if self._files < 2 or self.fraction <= 0:
            what = f"there are not two files with text, but {self._files}"
            raise DataError(no_held_out_message(what))

    def holds(self, file: InputRange) -> bool:
        """Return whether a file is held out, when all have been added: at least one, and never all."""
        place = hash_fraction(file.name, self.seed)
        if not self._chosen:
            return place == self._lowest
        if self._chosen == self._files:
            return place < self._highest
        return place < self.fraction


def refuse_plain_text(file: InputRange, column: str) -> None:
    """Raise DataError if a file has no columns, by one of which records shall be split."""
    if not format_named(file.format).has_columns:
        raise DataError(
            f"data.validation.group_column={column!r} needs records with columns, but "
            f"{file.name} is plain text: prepare text files and record files apart, or "
            "leave group_column out."
        )


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
