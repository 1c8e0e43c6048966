"""Samples on the page of a corpus: documents before and after cleaning, and documents that were dropped."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from html import escape
from itertools import islice
from pathlib import Path

from raymill.reading import entries, read_text

# Changed documents that are shown, and dropped ones of each step and reason.
SHOWN_CHANGED, SHOWN_REJECTS = 8, 3
SHOWN_CHARACTERS = 1500
# Lines that are compared (more take quadratic time), hunks of changed lines that are shown with lines around
# them, and characters of a line.
COMPARED_LINES, SHOWN_HUNKS, CONTEXT_LINES, SHOWN_WIDTH = 200, 6, 1, 400

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
    """Return the changed lines before and after, with a few around them."""
    old, new = sample["before"].split("\n"), sample["after"].split("\n")
    before, after = [], []
    matcher = SequenceMatcher(None, old[:COMPARED_LINES], new[:COMPARED_LINES], autojunk=False)
    for hunk in matcher.get_grouped_opcodes(CONTEXT_LINES):
        before.append("".join(_marked(old[a:b], kind, "del") for kind, a, b, _, _ in hunk))
        after.append("".join(_marked(new[c:d], kind, "ins") for kind, _, _, c, d in hunk))
    rest = f"⋯ and {len(before) - SHOWN_HUNKS} more\n" if len(before) > SHOWN_HUNKS else ""
    shown = [("⋯\n".join(side[:SHOWN_HUNKS]) + rest) for side in (before, after)]
    return (
        f"<details open><summary>{_origin(sample)}</summary><div class=pair>"
        f"<pre>{shown[0]}</pre><pre>{shown[1]}</pre></div></details>"
    )


def _marked(lines: Sequence[str], kind: str, mark: str) -> str:
    shown = [escape(_cut(line, SHOWN_WIDTH)) for line in lines]
    if kind == "equal":
        return "".join(f"{line}\n" for line in shown)
    return "".join(f"<{mark}>{line or ' '}</{mark}>\n" for line in shown)


def _reject(sample: Sample) -> str:
    text = escape(_cut(sample["text"], SHOWN_CHARACTERS))
    return f"<details><summary>{_origin(sample)}</summary><pre>{text}</pre></details>"


def _origin(sample: Sample) -> str:
    place = sample.get("url") or sample.get("file", "")
    return f"{escape(sample['source'])} <span class=soft>{escape(place)}</span>"


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[:characters]} …"
