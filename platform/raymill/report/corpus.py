"""report.html of a corpus: what each step left out of each source and why, lengths, languages, and examples.

It is one page without scripts or network, made of the corpus's manifest and of samples of its documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from raymill.data.sources.counters import length_class
from raymill.durable import JsonObject
from raymill.report.corpus_samples import samples_section
from raymill.report.page import Tile, document, table, tiles

# Languages, sources and reasons with rows of their own.
LISTED = 30
_STYLE = """
body { max-width: 68rem; }
.bar { background: var(--card); height: .8rem; min-width: 8rem; border-radius: .2rem; overflow: hidden;
  display: flex; }
.bar i { background: #9fb3c8; } .bar i.gone { background: var(--accent); }
.soft { color: var(--soft); font-size: .85rem; } td.bars { width: 35%; vertical-align: middle; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; } .pair pre { margin: 0; }
td:first-child, th { overflow-wrap: normal; }
.upright th.n { writing-mode: vertical-lr; transform: rotate(180deg); text-align: left; padding: .6rem 0; }
h3 { font-size: 1rem; margin-bottom: .2rem; }
details { margin: .4rem 0; } summary { cursor: pointer; }
pre { max-height: 20rem; overflow: auto; overflow-wrap: anywhere; }
del, ins { text-decoration: none; } del { background: #d6454540; } ins { background: #3ebd9340; }
"""


@dataclass
class _Sums:
    """Counts of one source or of all, added up."""

    documents: int = 0
    characters: int = 0
    bad: int = 0
    kept: int = 0
    kept_characters: int = 0
    changed: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)
    lengths: Counter[str] = field(default_factory=Counter)
    kept_lengths: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, parts: Iterable[JsonObject]) -> _Sums:
        """Add up the counts of sources, as the manifest has them."""
        total = cls()
        for part in parts:
            for name in ("documents", "characters", "bad", "kept", "kept_characters"):
                setattr(total, name, getattr(total, name) + part[name])
            for name in ("changed", "lengths", "kept_lengths", "languages"):
                getattr(total, name).update(part[name])
            for step, reasons in part["dropped"].items():
                total.dropped.setdefault(step, Counter()).update(reasons)
        return total

    def dropped_by(self, step: str) -> int:
        """Return the number of documents that a step dropped."""
        return self.dropped.get(step, Counter()).total()


def corpus_page(
    manifest: JsonObject, steps: Sequence[str], samples: Iterable[Mapping[str, str]]
) -> str:
    """Return the page. `steps` are the names of the cleaning steps in their order; `samples` are objects with
    either `step`, `reason` and `text` of a document that was dropped, or `before` and `after` of one that was
    changed, and with its `source`, `url` and `file`."""
    facts = manifest["facts"]
    sources: dict[str, JsonObject] = facts["sources"]
    total = _Sums.of(sources.values())
    # Documents without text are dropped before the first step.
    ordered = [*(step for step in total.dropped if step not in steps), *steps]
    sections = [
        f"<h1>{escape(str(manifest['name']))}</h1>",
        f"<p class=sub>{total.documents:,} documents read, {total.kept:,} kept by cleaning</p>",
        tiles(_tiles(total, facts)),
        "<h2>Cleaning, step by step</h2>",
        _funnel(total, ordered),
        "<h2>Sources</h2>",
        _sources(sources, ordered),
        "<h2>Lengths</h2>",
        _lengths(total),
        "<h2>Languages of the kept documents</h2>",
        _languages(total),
        *_later_stages(facts),
        *_duplicates(facts.get("duplicates", {})),
        samples_section(samples),
        "<h2>Bad records</h2>" if facts["bad"] else "",
        _lines(facts["bad_examples"]) if facts["bad"] else "",
        "<h2>Origin</h2>",
        table([("manifest", str(manifest["digest"])), ("cleaning", ", ".join(steps) or "none")]),
    ]
    return document(f"{manifest['name']} – Raymill", "\n".join(sections), _STYLE)


def _tiles(total: _Sums, facts: JsonObject) -> list[Tile]:
    splits = facts["splits"]
    return [
        Tile(_share(total.kept, total.documents), "of the documents kept by cleaning", main=True),
        Tile(_share(total.kept_characters, total.characters), "of the characters"),
        Tile(f"{splits['train']['documents']:,}", "documents to train on"),
        Tile(f"{splits['train']['bytes'] / 1e6:,.1f} MB", "of text to train on"),
        Tile(f"{splits['validation']['documents']:,}", "documents held out"),
    ]


def _funnel(total: _Sums, steps: Sequence[str]) -> str:
    rows = []
    left = total.documents
    for step in steps:
        dropped = total.dropped_by(step)
        reasons = ", ".join(
            f"{reason.replace('_', ' ')} {count:,}"
            for reason, count in total.dropped.get(step, Counter()).most_common(LISTED)
        )
        changed = f"changed {total.changed[step]:,}" if total.changed[step] else ""
        notes = "; ".join(filter(None, (reasons, changed)))
        rows.append(
            [
                f"{escape(step)}<div class=soft>{escape(notes)}</div>",
                f"{left:,}",
                f"{dropped:,}",
                _share(dropped, left),
                _bar((left - dropped, ""), (dropped, "gone"), whole=total.documents),
            ]
        )
        left -= dropped
    rows.append(
        ["<b>kept</b>", f"<b>{left:,}</b>", "", "", _bar((left, ""), whole=total.documents)]
    )
    return _grid(["step", "documents", "dropped", "share", "left and dropped"], rows)


def _sources(sources: Mapping[str, JsonObject], steps: Sequence[str]) -> str:
    largest = sorted(sources.items(), key=lambda item: -item[1]["documents"])
    sums = [(name, _Sums.of([counts])) for name, counts in largest[:LISTED]]
    if len(largest) > LISTED:
        others = _Sums.of(counts for _, counts in largest[LISTED:])
        sums.append((f"{len(largest) - LISTED} others", others))
    dropping = [step for step in steps if any(counts.dropped_by(step) for _, counts in sums)]
    rows = [
        [
            escape(name or "–"),
            f"{counts.documents:,}",
            f"{counts.bad:,}",
            *(_share(counts.dropped_by(step), counts.documents) for step in dropping),
            f"<b>{_share(counts.kept, counts.documents)}</b>",
            _share(counts.kept_characters, counts.characters),
        ]
        for name, counts in sums
    ]
    heads = ["source", "documents", "bad records", *dropping, "kept", "characters kept"]
    return f"<div class=upright>{_grid(heads, rows)}</div>"


def _lengths(total: _Sums) -> str:
    bounds = sorted({*total.lengths, *total.kept_lengths}, key=int)
    most = max((*total.lengths.values(), *total.kept_lengths.values()), default=1)
    rows = [
        [
            f"≤ {int(bound):,}",
            f"{total.lengths[bound]:,}",
            _bar((total.lengths[bound], ""), whole=most),
            f"{total.kept_lengths[bound]:,}",
            _bar((total.kept_lengths[bound], ""), whole=most),
        ]
        for bound in bounds
    ]
    return _grid(["characters", "read", "", "kept", ""], rows)


def _languages(total: _Sums) -> str:
    common = total.languages.most_common(LISTED)
    rest = total.kept - sum(count for _, count in common)
    listed = [(language or "not identified", count) for language, count in common]
    if rest:
        listed.append((f"{len(total.languages) - LISTED} others", rest))
    rows = [
        [
            escape(name),
            f"{count:,}",
            _share(count, total.kept),
            _bar((count, ""), whole=common[0][1]),
        ]
        for name, count in listed
    ]
    return _grid(["language", "documents", "share", ""], rows)


def _later_stages(facts: JsonObject) -> list[str]:
    """Return a table of the documents that stages after cleaning leave out; one may count in several."""
    duplicates = facts.get("duplicates", {})
    equal: Counter[str] = Counter()
    for counts in duplicates.get("dropped", {}).values():
        equal.update(counts)
    stages = {
        "duplicates of other documents": equal,
        "repeated paragraphs alone": duplicates.get("emptied", {}),
        "text of evaluation sets": facts.get("contaminated", {}).get("dropped", {}),
        "taken down": facts.get("taken_down", {}),
    }
    rows = [
        [stage, escape(source or "–"), f"{count:,}"]
        for stage, counts in stages.items()
        for source, count in sorted(counts.items(), key=lambda item: -item[1])[:LISTED]
        if count
    ]
    if not rows:
        return []
    return ["<h2>Left out after cleaning</h2>", _grid(["stage", "source", "documents"], rows)]


def _duplicates(duplicates: JsonObject) -> list[str]:
    """Return tables of the documents that duplicate one of each source, and of the sizes of clusters."""
    pairs = sorted(
        (
            (count, kept, other)
            for kept, counts in duplicates.get("dropped", {}).items()
            for other, count in counts.items()
        ),
        reverse=True,
    )
    if not pairs:
        return []
    rows = [
        [escape(other or "–"), escape(kept or "–"), f"{count:,}",
         _bar((count, "gone"), whole=pairs[0][0])]
        for count, kept, other in pairs[:LISTED]
    ]  # fmt: skip
    clusters: Counter[str] = Counter()
    for size, count in duplicates["histogram"].items():
        clusters[length_class(int(size))] += count
    sizes = [
        [f"≤ {int(bound):,}", f"{count:,}", _bar((count, ""), whole=max(clusters.values()))]
        for bound, count in sorted(clusters.items(), key=lambda item: int(item[0]))
    ]
    return [
        "<h2>Duplicates</h2>",
        _grid(["dropped from", "since it is in", "documents", ""], rows),
        _grid(["documents in a cluster", "clusters", ""], sizes),
    ]


def _bar(*parts: tuple[int, str], whole: int) -> str:
    """Return a bar of parts with their styles."""
    inner = "".join(
        f'<i class="{style}" style="width:{100 * count / max(whole, 1):.2f}%"></i>'
        for count, style in parts
    )
    return f"<div class=bar>{inner}</div>"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of HTML cells: names, numbers, and bars."""

    def cell(index: int, content: str) -> str:
        if content.startswith("<div class=bar>"):
            return f"<td class=bars>{content}</td>"
        return f"<td>{content}</td>" if index == 0 else f"<td class=n>{content}</td>"

    head = "".join(
        f"<th>{escape(text)}</th>" if index == 0 or not text or "left" in text
        else f"<th class=n>{escape(text)}</th>"
        for index, text in enumerate(heads)
    )  # fmt: skip
    body = "".join(
        "<tr>" + "".join(cell(index, content) for index, content in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f"<div class=wide><table><tr>{head}</tr>{body}</table></div>"


def _lines(lines: Sequence[str]) -> str:
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.1%}"
