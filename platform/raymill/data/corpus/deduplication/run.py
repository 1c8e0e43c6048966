"""Duplicate documents of a corpus: the stages that find them, in order.

1. *signatures* of each unit's documents, and their keys, sorted (`sign.py`);
2. *candidates* with equal keys, for each range of keys (`group.py`);
3. *sent* signatures, and *edges* between those that agree (`check.py`);
4. *components*, in one task or by contraction (`components.py`);
5. *keep*: a bitmap and the clusters of each unit (`keep.py`).

Every stage consists of units of work that are done once (`stages.py`), and its result depends on the documents
and parameters alone. Document ids are ordered as the units are, so the first source's document of a cluster
stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

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
from raymill.data.corpus.deduplication.refusal import refuse_large_clusters
from raymill.data.corpus.deduplication.runner import StageRunner
from raymill.data.corpus.deduplication.settings import DeduplicationSettings
from raymill.data.corpus.deduplication.sign import sign_unit
from raymill.data.corpus.documents import DocumentsFile
from raymill.data.corpus.stages import StageUnit
from raymill.data.corpus.store import CorpusStore, StoredFile
from raymill.schema.corpus_sections import DeduplicationConfig


@dataclass(frozen=True)
class Duplicates:
    """Duplicate documents: files of bitmaps and of members of clusters for each unit, and counts.

    `dropped`: source of the document that stays → source of those that go → their number; `histogram`: size
    of a cluster → number of clusters.
    """

    keep: tuple[StoredFile, ...]
    clusters: tuple[StoredFile, ...]
    dropped: dict[str, dict[str, int]]
    histogram: dict[int, int]


def find_duplicates(
    store: CorpusStore,
    documents: Sequence[DocumentsFile],
    config: DeduplicationConfig,
    *,
    tasks: int | None = None,
) -> Duplicates:
    """Find the documents that duplicate one of an earlier unit or row.

    Raises:
        DataError: a cluster is larger than `config.max_cluster`, or a file is damaged.
    """
    runner = StageRunner(store, DeduplicationSettings(config, tuple(documents)), tasks)
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
    return Duplicates(
        keep=runner.settings.stored["keep"],
        clusters=runner.settings.stored["clusters"],
        dropped={source: dict(sorted(dropped[source].items())) for source in sorted(dropped)},
        histogram=dict(sorted(histogram.items())),
    )


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
