"""Registry of formats: every class that reads input files, by name and by ending."""

from __future__ import annotations

from pathlib import PurePath

from raymill.data.sources.embedded import Demonstration, StandardLibrary
from raymill.data.sources.format import Format
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.json_lines import JsonLines
from raymill.data.sources.plain_text import PlainText
from raymill.data.sources.selected_documents import SelectedDocuments
from raymill.data.sources.tables import ArrowStream, Parquet

FORMATS: tuple[Format, ...] = (
    PlainText(), JsonLines(), Parquet(), ArrowStream(), StandardLibrary(), Demonstration(),
    SelectedDocuments(),
)  # fmt: skip
# Endings that `data.path` reads. Formats that came later must be declared in `data.sources`: a folder that was
# prepared before they existed has the same inputs today.
PATH_ENDINGS = ("txt", "md", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow")
COMPRESSIONS = ("gz", "zst")

_BY_NAME = {name: form for form in FORMATS for name in (form.name, *form.endings)}


def format_named(kind: str) -> Format:
    """Return the format of an input range's `format`, which may end in a compression."""
    return _BY_NAME.get(kind) or _BY_NAME[kind.partition(".")[0]]


def path_kind(path: PurePath) -> str | None:
    """Return the `format` of a file that `data.path` leads to, by its name's ending."""
    name = path.name.lower()
    return next((kind for kind in PATH_ENDINGS if name.endswith(f".{kind}")), None)


def record_location(span: InputRange, number: int | None) -> str:
    """Return the location of line or row `number` of an input range, for a message."""
    return format_named(span.format).location(span, number)
