"""Deduplication of a corpus: its stages, in order.

1. *signatures* of each unit's documents, and their keys, sorted (`sign.py`);
2. *candidates* with equal keys, for each range of keys (`group.py`);
3. *sent* signatures, and *edges* between those that agree (`check.py`);
4. *components*, in one task or by contraction (`components.py`);
5. *keep*: a bitmap and the clusters of each unit (`keep.py`).
6. Paragraphs of what is kept: their keys, the *repeated* ones, and *unique* documents without these
   (`paragraphs.py`).

Every stage consists of units of work that are done once (`stages.py`), and its result depends on the documents
and parameters alone. Document ids are ordered as the units are, so the first source's document of a cluster
stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from raymill.data.corpus.deduplication.check import check_unit, send_signatures
from raymill.data.corpus.deduplication.components import (
    WORKING_BYTES,
    Contraction,
    connect_at_once,
    contract,
    unit_ranges,
)
from raymill.data.corpus.deduplication.group import group_range, key_ranges, range_name
from raymill.data.corpus.deduplication.keep import keep_unit
from raymill.data.corpus.deduplication.paragraphs import (
    cut_paragraphs,
    group_paragraphs,
    write_paragraphs,
)
from raymill.data.corpus.deduplication.refusal import refuse_large_clusters
from raymill.data.corpus.deduplication.runner import StageRunner
from raymill.data.corpus.deduplication.settings import DeduplicationSettings
from raymill.data.corpus.deduplication.sign import sign_unit
from raymill.data.corpus.documents import DocumentsFile
from raymill.data.corpus.stages import StageUnit
from raymill.data.corpus.store import CorpusStore, StoredFile
from raymill.durable import JsonObject
from raymill.schema.corpus_sections import DeduplicationConfig


@dataclass(frozen=True)
class Deduplication:
    """Result of a deduplication.

    `documents`: the files to read from here on, some of them written again without repeated paragraphs;
    `keep`: a bitmap for each of them, None where all of its documents are kept; `clusters`: members of
    clusters for each unit, with their rows in the files as they were; `facts`: counts as JSON values.
    """

    documents: tuple[DocumentsFile, ...]
    keep: tuple[StoredFile | None, ...]
    clusters: tuple[StoredFile, ...]
    facts: JsonObject


def deduplicate(
    store: CorpusStore,
    documents: Sequence[DocumentsFile],
    config: DeduplicationConfig,
    *,
    tasks: int | None = None,
) -> Deduplication:
    """Leave out documents that duplicate one of an earlier unit or row, and repeated paragraphs.

    Returns:
        `facts` has `dropped` (source of the document that stays → source of those that go → number),
        `histogram` (size of a cluster → number), and `paragraphs`, `cut` and `emptied` by source.

    Raises:
        DataError: a cluster is larger than `config.max_cluster`, or a file is damaged.
    """
    runner = StageRunner(store, DeduplicationSettings(config, tuple(documents)), tasks)
    keep: list[StoredFile | None] = [None for _ in documents]
    facts: JsonObject = {}
    if config.documents or config.near:
        facts |= _find_duplicates(runner)
        keep = [*runner.settings.stored["keep"]]
    files = [*documents]
    if config.paragraphs:
        facts |= _cut_repeated(runner, files, keep)
    clusters = runner.settings.stored.get("clusters", ())
    return Deduplication(tuple(files), tuple(keep), clusters, facts)


def _find_duplicates(runner: StageRunner) -> JsonObject:
    documents, config = runner.settings.documents, runner.settings.config
    signed = runner.run(
        "signatures",
        [StageUnit(file.unit, file.sha256, number) for number, file in enumerate(documents)],
        sign_unit,
        ("signatures", "keys", "local"),
    )
    keys = sum(outcome.facts["keys"] for outcome in signed)
    inputs = runner.digest("keys")
    ranges = key_ranges(keys, config.memory_bytes)
    runner.run("candidates", [StageUnit(range_name(r), inputs, r) for r in ranges], group_range)
    runner.run("sent", runner.each_unit("candidates", "signatures"), send_signatures)
    checked = runner.run("edges", runner.each_unit("sent", "signatures", "local"), check_unit)
    stars = _connect(runner, sum(outcome.facts["edges"] for outcome in checked))
    kept = runner.run(
        "keep",
        [StageUnit(u.name, u.inputs, (u.item, stars)) for u in runner.each_unit(stars)],
        keep_unit,
        ("keep", "clusters"),
    )
    facts = [outcome.facts for outcome in kept]
    refuse_large_clusters(runner, [unit["largest"] for unit in facts if unit["largest"]])
    dropped: dict[str, Counter[str]] = {}
    histogram: Counter[int] = Counter()
    for file, unit in zip(documents, facts, strict=True):
        for source, count in unit["dropped"].items():
            dropped.setdefault(source, Counter())[file.source] += count
        histogram.update({int(size): count for size, count in unit["histogram"].items()})
    return {
        "dropped": {stays: dict(sorted(dropped[stays].items())) for stays in sorted(dropped)},
        "histogram": {str(size): count for size, count in sorted(histogram.items())},
    }


def _connect(runner: StageRunner, edges: int) -> str:
    """Run the stages that turn edges into stars; return the name of the last one."""
    memory = runner.settings.config.memory_bytes
    # Edges count once in each direction.
    if edges // 2 * WORKING_BYTES <= memory:
        everything = StageUnit("all", runner.digest("edges"), "edges")
        runner.run("components", [everything], connect_at_once)
        return "components"
    ranges = unit_ranges([file.rows for file in runner.settings.documents], memory)
    read, step, unchanged = "edges", 0, 0
    # Both kinds of steps must find nothing to change.
    while unchanged < 2:
        name = f"contraction-{step:03d}"
        items = [
            Contraction(name, "small" if step % 2 else "large", *units, read) for units in ranges
        ]
        inputs = runner.digest(read)
        outcomes = runner.run(name, [StageUnit(i.name, inputs, i) for i in items], contract)
        changed = any(outcome.facts["changed"] for outcome in outcomes)
        unchanged = 0 if changed else unchanged + 1
        read, step = name, step + 1
    return read


def _cut_repeated(
    runner: StageRunner, files: list[DocumentsFile], keep: list[StoredFile | None]
) -> JsonObject:
    """Cut repeated paragraphs; put the files that are written again in the place of others."""
    inputs = ("keep",) if "keep" in runner.settings.stored else ()
    written = runner.run(
        "paragraphs",
        runner.each_unit(*inputs),
        write_paragraphs,
        ("paragraphs", "repeated-here"),
    )
    keys = sum(outcome.facts["keys"] for outcome in written)
    digest = runner.digest("paragraphs")
    ranges = key_ranges(keys, runner.settings.config.memory_bytes)
    runner.run("repeated", [StageUnit(range_name(r), digest, r) for r in ranges], group_paragraphs)
    units = runner.each_unit("repeated", "repeated-here", *inputs)
    sums: dict[str, Counter[str]] = {
        "paragraphs": Counter(),
        "cut": Counter(),
        "emptied": Counter(),
    }
    cut = runner.run("unique", units, cut_paragraphs)
    for number, (before, after) in enumerate(zip(written, cut, strict=True)):
        source = files[number].source
        for name, count in (
            ("paragraphs", before.facts["paragraphs"]),
            ("cut", after.facts["cut"]),
            ("emptied", after.facts["emptied"]),
        ):
            sums[name][source] += count
        if after.files:
            [file] = after.files
            files[number] = replace(
                files[number],
                path=file.path,
                rows=after.facts["rows"],
                text_bytes=after.facts["text_bytes"],
                bytes=file.bytes,
                sha256=file.sha256,
            )
            # What isn't kept isn't in the new file.
            keep[number] = None
    return {name: dict(sorted(counts.items())) for name, counts in sums.items()}
