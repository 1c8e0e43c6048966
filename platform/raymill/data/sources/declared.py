"""Sources of text that `data.sources` declares, in order of priority, or that `data.path` stands for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from raymill.data.sources.inputs import Source
from raymill.data.sources.registry import (
    DECLARABLE,
    declared_kind,
    kind_by_ending,
    path_kind,
)
from raymill.schema.bind import bind_section, nearest
from raymill.schema.data_sections import DataConfig
from raymill.schema.storage import input_problems

KEY = "data.sources"


@dataclass(frozen=True)
class SourceEntry:
    """Entry of `data.sources`.

    `path`: files, folders and globs, also in object stores. `format`: one of the registry, None: by each
    file's ending. `endings`: those that the format's files have here, with or without compression; `*` is any
    name. The columns are None where they are as `data.*` says; `language` is that of all its text. `license`:
    which trees of code are read.
    """

    path: tuple[str, ...]
    format: str | None = None
    endings: tuple[str, ...] | None = None
    text_column: str | None = None
    url_column: str | None = None
    language_column: str | None = None
    language: str = ""
    license: Literal["permissive", "any"] = "permissive"


@dataclass(frozen=True)
class DeclaredSource:
    """Source whose files can be listed. `key` is what the user typed; names begin with `prefix`."""

    key: str
    prefix: str
    path: tuple[str, ...]
    source: Source
    format: str | None = None
    endings: tuple[str, ...] | None = None
    is_declared: bool = True

    def kind_of(self, name: str) -> str | None:
        """Return the `format` of the ranges of a file of this name; None where the source doesn't read it."""
        if not self.is_declared:
            return path_kind(name)
        if self.format is None:
            return kind_by_ending(name)
        return declared_kind(name, self.format, self.endings)


def declared_sources(data: DataConfig, problems: list[str]) -> tuple[DeclaredSource, ...]:
    """Return the sources in their order; append to `problems` what doesn't fit, by the key that users type."""
    if not data.sources:
        source = Source(data.corpus or data.name, None, data.url_column, data.language_column)
        return (DeclaredSource("data.path", "", data.path or (), source, is_declared=False),)
    if data.path:
        problems.append(
            f"{KEY}, data.path: give one of them; data.path is short for a single source"
        )
    found = []
    for name, tree in data.sources.items():
        key = f"{KEY}.{name}"
        entry = bind_section(SourceEntry, tree, key, problems)
        if entry is not None:
            problems += _entry_problems(key, name, entry)
            source = Source(
                name,
                entry.text_column,
                entry.url_column or data.url_column,
                entry.language_column or data.language_column,
                entry.language,
                data.extraction,
                entry.license,
            )
            found.append(
                DeclaredSource(
                    f"{key}.path", f"{name}/", entry.path, source, entry.format, entry.endings
                )
            )
    return tuple(found)


def _entry_problems(key: str, name: str, entry: SourceEntry) -> list[str]:
    problems = []
    if not name or name != PurePath(name).name or name.startswith("."):
        problems.append(
            f"{key}: a source's name begins names of files, so it has no / and no leading dot"
        )
    if entry.format is not None and entry.format not in DECLARABLE:
        problems.append(
            f"{key}.format={entry.format}: there is no such format{nearest(entry.format, [*DECLARABLE])}; "
            f"there are {', '.join(DECLARABLE)}"
        )
    if entry.endings is not None and entry.format is None:
        problems.append(f"{key}.endings: say in {key}.format how these files are read")
    if not entry.path:
        problems.append(f"{key}.path: give the files, folders or globs to read")
    for path in entry.path:
        problems += input_problems(f"{key}.path", path)
    return problems
