"""`jobs/prepare.py preview=5`: documents on the terminal, before and after each step of cleaning."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from difflib import unified_diff
from itertools import islice

from raymill.data.corpus.cleaning.step import DeclaredStep
from raymill.data.corpus.draft import Draft
from raymill.data.sources.documents import Document, DocumentParser
from raymill.data.sources.format import Bad
from raymill.data.sources.inputs import InputRange, Unit
from raymill.data.sources.json_values import printable
from raymill.data.sources.records import read_records

# Lines of a document or of a step's changes that are shown, and characters of a line.
SHOWN_LINES, SHOWN_WIDTH = 20, 160


def preview(
    units: Sequence[Unit],
    parser: DocumentParser,
    steps: Sequence[DeclaredStep],
    count: int,
    seed: int,
) -> Iterator[str]:
    """Yield lines about `count` documents: the first ones of input ranges that are chosen at random."""
    spans = [span for unit in units for span in unit]
    random.Random(seed).shuffle(spans)
    # Of fewer ranges than documents, each shows several.
    each = -(-count // max(len(spans), 1))
    chosen = (
        (span, document) for span in spans for document in islice(_documents(span, parser), each)
    )
    for number, (span, document) in enumerate(islice(chosen, count), 1):
        yield f"── document {number} of {count} {'─' * 40}"
        yield from _story(span, document, steps)
        yield ""


def _documents(span: InputRange, parser: DocumentParser) -> Iterator[Document]:
    for record in read_records(span, parser, hashlib.sha256()):
        if not isinstance(record, Bad):
            yield record


def _story(span: InputRange, document: Document, steps: Sequence[DeclaredStep]) -> Iterator[str]:
    draft = Draft(document.text, document.source, document.url, document.language)
    known = (document.source, document.url, span.name, document.language)
    yield printable(" · ".join(filter(None, known)))
    yield from _shown(draft.text.split("\n"), "  ")
    for step in steps:
        before, noted, language = draft.text, dict(draft.signals), draft.language
        reason = step.clean(draft)
        signals = {name: value for name, value in draft.signals.items() if noted.get(name) != value}
        values = ", ".join(f"{name} {value:.4g}" for name, value in signals.items())
        found = draft.language if draft.language != language else ""
        verdict = _verdict(before, draft.text, reason)
        yield f"{step.key}: {verdict}" + "".join(f" · {text}" for text in (found, values) if text)
        if reason is not None:
            return
        if draft.text != before:
            yield from _changes(before, draft.text)
    yield f"kept: {len(document.text):,} → {len(draft.text):,} characters"


def _verdict(before: str, after: str, reason: str | None) -> str:
    if reason is not None:
        return f"DROPPED ({reason})"
    return f"{len(before):,} → {len(after):,} characters" if after != before else "unchanged"


def _changes(before: str, after: str) -> Iterator[str]:
    lines = unified_diff(before.split("\n"), after.split("\n"), n=0, lineterm="")
    # The first two name files; others tell line numbers.
    changed = (line for line in islice(lines, 2, None) if not line.startswith("@@"))
    yield from _shown([*islice(changed, SHOWN_LINES + 1)], "  ")


def _shown(lines: Sequence[str], margin: str) -> Iterator[str]:
    for line in lines[:SHOWN_LINES]:
        cut = f"{line[:SHOWN_WIDTH]} …" if len(line) > SHOWN_WIDTH else line
        yield f"{margin}{printable(cut)}"
    if len(lines) > SHOWN_LINES:
        yield f"{margin}…"
