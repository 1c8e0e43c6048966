"""Input ranges: the pieces of files that units of a preparation read."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from raymill.durable import JsonObject
from raymill.schema.extraction_section import ExtractionConfig

# Embedded conversations are generated and not read.
EMBEDDED = "stdlib_chat"
# These sources need no files of the user's.
EMBEDDED_TEXT = ("stdlib", "demo")
# The split is determined per record, by data.validation.group_column.
BY_RECORD = "by record"


@dataclass(frozen=True)
class Source:
    """Source that an input belongs to, and how its records are read.

    `name` is its key in `data.sources`, or that of the data. What is None is read as `data.*` says, or not
    at all; `language` is "" while unknown. `extraction` and `license` ("permissive" or "any") are those of
    formats that extract texts, None for others.
    """

    name: str = ""
    text_column: str | None = None
    url_column: str | None = None
    language_column: str | None = None
    language: str = ""
    extraction: ExtractionConfig | None = None
    license: str | None = None

    def stated(self) -> JsonObject:
        """Return what shapes the records, except the name, which the ranges' names begin with."""
        tree = asdict(self)
        del tree["name"]
        return {key: value for key, value in tree.items() if value not in (None, "")}


@dataclass(frozen=True)
class InputRange:
    """Part of one input that a unit reads.

    `name` is unique and relative (no machine's paths); `format` is a name of `registry.py`, with the file's
    compression; `offset` and `length` are bytes of the file, aligned to records or, for Parquet, to the row
    groups `first_group` … `first_group + groups - 1`. `split` is "train", "validation" or BY_RECORD.
    `modified_ns` is 0 for texts that aren't files.
    """

    name: str
    path: str
    format: str
    split: str
    offset: int
    length: int
    file_bytes: int
    modified_ns: int
    first_group: int = 0
    groups: int = 0
    source: Source = Source()

    @property
    def extraction(self) -> ExtractionConfig:
        """Settings by which main text is found, for a range of pages."""
        assert self.source.extraction is not None, (
            "planning gives ranges of pages how to extract them"
        )
        return self.source.extraction

    def to_tree(self) -> JsonObject:
        """Return the JSON object of which digests of units are taken."""
        # A field-wise copy; `asdict` would copy the source as well.
        tree = dict(vars(self))
        # Ranges without a declared source keep the digests from before there were any.
        if not (stated := self.source.stated()):
            del tree["source"]
        else:
            tree["source"] = stated
        return tree


Unit = tuple[InputRange, ...]
