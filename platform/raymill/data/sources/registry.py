"""Registry of formats: every class that reads input files, by name and by ending."""

from __future__ import annotations

from collections.abc import Sequence

from raymill.data.sources.code import CodeTree
from raymill.data.sources.embedded import Demonstration, StandardLibrary
from raymill.data.sources.epub import Epub
from raymill.data.sources.format import Format
from raymill.data.sources.html import HtmlFiles
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.json_lines import JsonLines
from raymill.data.sources.plain_text import PlainText
from raymill.data.sources.selected_documents import SelectedDocuments
from raymill.data.sources.tables import ArrowStream, Parquet
from raymill.data.sources.warc import WebArchive
from raymill.data.sources.wikipedia import WikipediaDump

FORMATS: tuple[Format, ...] = (
    PlainText(), JsonLines(), Parquet(), ArrowStream(), WebArchive(), HtmlFiles(), Epub(),
    WikipediaDump(), CodeTree(), StandardLibrary(), Demonstration(), SelectedDocuments(),
)  # fmt: skip
# Endings that `data.path` reads. Formats that came later must be declared in `data.sources`: a folder that was
# prepared before they existed has the same inputs today.
PATH_ENDINGS = ("txt", "md", "jsonl", "jsonl.gz", "jsonl.zst", "parquet", "arrow")
COMPRESSIONS = ("gz", "zst")

# Formats that `data.sources.*.format` can name.
DECLARABLE = {form.name: form for form in FORMATS if not form.is_embedded}
ANY_ENDING = "*"
_BY_NAME = {name: form for form in FORMATS for name in (form.name, *form.endings)}


def format_named(kind: str) -> Format:
    """Return the format of an input range's `format`, which may end in a compression."""
    return _BY_NAME.get(kind) or _BY_NAME[kind.partition(".")[0]]


def path_kind(name: str) -> str | None:
    """Return the `format` of a file that `data.path` leads to, by its name's ending."""
    name = name.lower()
    return next((kind for kind in PATH_ENDINGS if name.endswith(f".{kind}")), None)


def kind_by_ending(name: str) -> str | None:
    """Return the `format` of a file of a declared source by its name's ending, the longest that fits."""
    plain, compression = _uncompressed(name)
    fitting = [
        (len(ending), form)
        for form in DECLARABLE.values()
        for ending in form.endings
        if _ends(plain if form.compressible else name.lower(), ending)
    ]
    if not fitting:
        return None
    _, form = max(fitting, key=lambda pair: pair[0])
    return f"{form.name}{compression if form.compressible else ''}"


def declared_kind(name: str, format_name: str, endings: Sequence[str] | None) -> str | None:
    """Return the `format` of a file of a source whose format is declared; None where its ending is another."""
    form = DECLARABLE[format_name]
    plain, compression = _uncompressed(name) if form.compressible else (name.lower(), "")
    wanted = form.endings if endings is None else endings
    if any(ending == ANY_ENDING or _ends(plain, ending) for ending in wanted):
        return f"{format_name}{compression}"
    return None


def _uncompressed(name: str) -> tuple[str, str]:
    """Return a file's name in lower case without a compression's ending, and that ending."""
    name = name.lower()
    found = next((f".{one}" for one in COMPRESSIONS if name.endswith(f".{one}")), "")
    return name.removesuffix(found), found


def _ends(name: str, ending: str) -> bool:
    return name.endswith(f".{ending.lower().removeprefix('.')}")


def record_location(span: InputRange, number: int | None) -> str:
    """Return the location of line or row `number` of an input range, for a message."""
    return format_named(span.format).location(span, number)
