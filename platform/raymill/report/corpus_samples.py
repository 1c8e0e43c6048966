"""Samples on the page of a corpus: documents before and after cleaning, and documents that were dropped."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from html import escape
from itertools import islice
from pathlib import Path

from raymill.reading import entries, read_text

# Changed documents that are shown, and dropped ones of each step and reason.
SHOWN_CHANGED, SHOWN_REJECTS = 8, 3
SHOWN_CHARACTERS = 1500
# Lines that are compared; more take quadratic time.
COMPARED_LINES = 200

# Files of samples that are read, and lines of each.
READ_FILES, READ_LINES = 64, 200

Sample = Mapping[str, str]


def read_samples(folder: Path) -> Iterator[Sample]:
    """Yield the samples of at most `READ_FILES` of a corpus's units, which are chosen evenly."""
    paths = [path for path in entries(folder / "samples") if path.name.endswith(".jsonl")]
    for path in paths[:: -(-len(paths) // READ_FILES) or 1]:
        for line in islice(read_text(path).splitlines(), READ_LINES):
            yield json.loads(line)


def samples_section(samples: Iterable[Sample]) -> str:
    """Return the HTML of the samples, in the order in which they come."""
    changed: list[Sample] = []
    rejects: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for sample in samples:
        if "reason" not in sample:
            if len(changed) < SHOWN_CHANGED:
                changed.append(sample)
        elif len(of_reason := rejects[sample["step"], sample["reason"]]) < SHOWN_REJECTS:
            of_reason.append(sample)
    sections = []
    if changed:
        sections += ["<h2>Changed documents, before and after</h2>", *map(_pair, changed)]
    if rejects:
        sections.append("<h2>Dropped documents, by step and reason</h2>")
        sections += [
            f"<h3>{escape(step)}: {escape(reason.replace('_', ' '))}</h3>"
            + "".join(_reject(sample) for sample in chosen)
            for (step, reason), chosen in sorted(rejects.items())
        ]
    else:
        sections.append(
            "<p class=soft>data.keep_rejects=0.001 keeps dropped documents to read.</p>"
        )
    return "\n".join(sections)


def _pair(sample: Sample) -> str:
    before, after = _shown(sample["before"]), _shown(sample["after"])
    old, new = before.split("\n"), after.split("\n")
    marked_old, marked_new = [*map(escape, old)], [*map(escape, new)]
    if max(len(old), len(new)) <= COMPARED_LINES:
        for kind, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
            if kind != "equal":
                marked_old[a:b] = [f"<del>{line or ' '}</del>" for line in marked_old[a:b]]
                marked_new[c:d] = [f"<ins>{line or ' '}</ins>" for line in marked_new[c:d]]
    return (
        f"<details open><summary>{_origin(sample)}</summary><div class=pair>"
        f"<pre>{chr(10).join(marked_old)}</pre><pre>{chr(10).join(marked_new)}</pre></div></details>"
    )


def _reject(sample: Sample) -> str:
    text = escape(_shown(sample["text"]))
    return f"<details><summary>{_origin(sample)}</summary><pre>{text}</pre></details>"


def _origin(sample: Sample) -> str:
    place = sample.get("url") or sample.get("file", "")
    return f"{escape(sample['source'])} <span class=soft>{escape(place)}</span>"


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
