"""Records of pages: collected into batches, extracted, and yielded in their order with what isn't a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from raymill.data.sources.extraction import Page
from raymill.data.sources.extraction_parent import Refusal, extractor
from raymill.data.sources.format import Bad, Found, Place, Record, Skipped
from raymill.schema.extraction_section import ExtractionConfig

# Pages that are sent to the extractor at once, and bytes of them.
_BATCH_PAGES, _BATCH_BYTES = 32, 4 << 20


@dataclass(frozen=True, slots=True)
class PageRecord:
    """Page of an archive or a file, to be extracted. `where` names it in messages."""

    page: Page
    values: Record
    place: Place
    where: str


# What a format of pages reads: pages, texts that need no extraction, and what is neither.
Entry = PageRecord | Found | Bad


def extracted(entries: Iterable[Entry], config: ExtractionConfig) -> Iterator[Found | Bad]:
    """Yield the text of each page, in the order of the entries."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += len(entry.page.content) if isinstance(entry, PageRecord) else 1
        if len(batch) >= _BATCH_PAGES or size >= _BATCH_BYTES:
            yield from _texts(batch, config)
            batch, size = [], 0
    yield from _texts(batch, config)


def _texts(batch: list[Entry], config: ExtractionConfig) -> Iterator[Found | Bad]:
    pages = [entry.page for entry in batch if isinstance(entry, PageRecord)]
    texts = extractor(config).texts(pages)
    for entry in batch:
        if isinstance(entry, PageRecord):
            yield _result(entry, next(texts))
        else:
            yield entry


def _result(entry: PageRecord, text: str | Refusal) -> Found | Bad:
    if isinstance(text, Refusal):
        return Bad(entry.where, text.why, cause=text.cause)
    if not text:
        return Skipped.because("no main text")
    return Found(entry.values, entry.place, text)
