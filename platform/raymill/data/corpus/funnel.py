"""Corpus on the terminal: what will be done, and how much of each source each stage has left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from raymill.data.corpus.prepare import PreparedCorpus
from raymill.durable import JsonObject
from raymill.schema.data_sections import DataConfig

# Reasons of a step that are listed.
LISTED = 4


def stages_of(data: DataConfig) -> str:
    """Describe the stages that a configuration asks for, as in `clean (12 steps), hold out`."""
    stages = [f"clean ({', '.join(data.cleaning) or 'no steps'})"]
    duplicates = data.deduplication
    kinds = [name for name in ("documents", "paragraphs", "near") if getattr(duplicates, name)]
    if kinds:
        stages.append(f"deduplicate ({', '.join(kinds)})")
    if data.decontamination.path is not None:
        stages.append("decontaminate")
    if data.takedown is not None:
        stages.append("take down")
    return ", ".join([*stages, "hold out"])


def funnel(corpus: PreparedCorpus) -> list[str]:
    """Return lines that tell what was kept and dropped: by step, by source, by split."""
    facts = corpus.manifest["facts"]
    sources: Mapping[str, JsonObject] = facts["sources"]
    documents = sum(counts["documents"] for counts in sources.values())
    kept = sum(counts["kept"] for counts in sources.values())
    characters = sum(counts["characters"] for counts in sources.values())
    kept_characters = sum(counts["kept_characters"] for counts in sources.values())
    lines = [f"Corpus {corpus.store.folder} (manifest {corpus.digest[:12]})"]
    bad = f", {facts['bad']:,} bad records" if facts["bad"] else ""
    lines.append(_line("read", f"{documents:,} documents, {characters / 1e6:.2f}M characters{bad}"))
    dropped = _dropped(sources)
    # In the order in which the steps are applied; documents without text come before all of them.
    order = ["empty", *(name for name, _ in corpus.manifest["config"]["cleaning"])]
    for step in sorted(dropped, key=order.index):
        reasons = dropped[step]
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(LISTED))
        more = f", {len(reasons) - LISTED} other reasons" if len(reasons) > LISTED else ""
        share = _share(reasons.total(), documents)
        lines.append(_line(step, f"−{reasons.total():,} ({share}): {listed}{more}"))
    share = f"{_share(kept, documents)}, {_share(kept_characters, characters)} of the characters"
    lines.append(_line("cleaned", f"{kept:,} documents ({share})"))
    if len(sources) > 1:
        lines += [
            _line(f"  {name}", f"{counts['kept']:,} of {counts['documents']:,} documents")
            for name, counts in sources.items()
        ]
    lines += _duplicates(facts.get("duplicates"))
    if "contaminated" in facts:
        gone = sum(facts["contaminated"]["dropped"].values())
        lines.append(_line("contaminated", f"−{gone:,} documents with text of evaluation sets"))
    if "taken_down" in facts:
        gone = sum(facts["taken_down"].values())
        lines.append(_line("taken down", f"−{gone:,} documents"))
    splits = facts["splits"]
    for name, text in (("train", "to train on"), ("validation", "held out")):
        split = splits[name]
        lines.append(
            _line(text, f"{split['documents']:,} documents, {split['bytes'] / 1e6:.2f} MB of text")
        )
    return lines


def _duplicates(duplicates: JsonObject | None) -> list[str]:
    """Describe the duplicates between and within sources, and the largest clusters of them."""
    if duplicates is None:
        return []
    dropped: Mapping[str, Mapping[str, int]] = duplicates.get("dropped", {})
    sizes = {int(size): count for size, count in duplicates.get("histogram", {}).items()}
    gone = sum(sum(counts.values()) for counts in dropped.values())
    largest = f", the largest of {max(sizes):,}" if sizes else ""
    lines = [_line("duplicates", f"−{gone:,} in {sum(sizes.values()):,} clusters{largest}")]
    pairs = sorted(
        (
            (count, kept, other)
            for kept, counts in dropped.items()
            for other, count in counts.items()
        ),
        reverse=True,
    )
    if len(dropped) > 1 or any(kept != other for _, kept, other in pairs):
        lines += [
            _line(f"  {other}", f"−{count:,} that {kept} has")
            for count, kept, other in pairs[:LISTED]
        ]
    if "cut" in duplicates:
        cut, emptied = (sum(duplicates[name].values()) for name in ("cut", "emptied"))
        lines.append(
            _line("repeated paragraphs", f"{cut:,} cut, −{emptied:,} documents of nothing else")
        )
    return lines


def _dropped(sources: Mapping[str, JsonObject]) -> dict[str, Counter[str]]:
    """Sum up the dropped documents by step and reason over all sources."""
    total: dict[str, Counter[str]] = {}
    for counts in sources.values():
        steps: Mapping[str, Any] = counts["dropped"]
        for step, reasons in steps.items():
            total.setdefault(step, Counter()).update(reasons)
    return total


def _share(part: int, whole: int) -> str:
    return f"{part / max(whole, 1):.1%}"


def _line(name: str, text: str) -> str:
    return f"  {name:<22}{text}"
