"""The same files whatever the order of the work, the number of tasks and the kills."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from data.corpus.deduplication.test_run import split_in, texts_with_copies
from data.documents_factory import CONFIG, write_documents
from data.in_process import without_ray
from raymill.data import cluster_tasks
from raymill.data.corpus import stages
from raymill.data.corpus.deduplication.run import Deduplication, deduplicate
from raymill.data.corpus.documents import DocumentsFile
from raymill.data.corpus.store import CorpusStore

# Contraction and several ranges of keys, so that every stage has units.
ALL_STAGES = replace(
    CONFIG, bands=4, band_rows=4, paragraphs=True, paragraph_words=3, memory_bytes=1500
)
UNITS = split_in([text.replace(" word11", "\nword11") for text in texts_with_copies(2, 24)], 3)


class KilledError(Exception):
    """End of a task, as the test wants it."""


def digests(result: Deduplication) -> list[object]:
    """Everything that a deduplication tells later stages."""
    return [result.documents, result.keep, result.clusters, result.facts]


def undisturbed(folder: Path) -> list[object]:
    """Result of a deduplication in order and in one go."""
    store, files = write_documents(folder, UNITS)
    with without_ray():
        return digests(deduplicate(store, files, ALL_STAGES))


def test_any_order_of_work_gives_the_same(tmp_path: Path) -> None:
    def shuffled(
        function: Callable[[Any, Any], Any], items: Iterable[Any], *, shared: Any, tasks: int | None
    ) -> Iterator[Any]:
        order = list(items)
        random.Random(len(order)).shuffle(order)
        return (function(item, shared) for item in order)

    expected = undisturbed(tmp_path / "expected")
    store, files = write_documents(tmp_path / "shuffled", UNITS)
    with patch.object(cluster_tasks, "parallel", shuffled):
        assert digests(deduplicate(store, files, ALL_STAGES)) == expected


def test_kills_at_every_stage_lose_one_unit_each(tmp_path: Path) -> None:
    expected = undisturbed(tmp_path / "expected")
    store, files = write_documents(tmp_path / "killed", UNITS)
    finished = stages.UnitFiles.commit
    commits: list[str] = []

    def killed_once(self: stages.UnitFiles) -> Any:
        written = "".join(sorted(self._written))
        # Each unit is killed before its files have their names, and finishes at the next try.
        if written and written not in commits:
            commits.append(written)
            raise KilledError
        commits.append(f"finished {written}" if written else "")
        return finished(self)

    kills = 0
    with without_ray(), patch.object(stages.UnitFiles, "commit", killed_once):
        while True:
            try:
                result = deduplicate(store, files, ALL_STAGES)
                break
            except KilledError:
                kills += 1
    assert digests(result) == expected
    stage_names = {name.split("/")[1] for name in commits if name.startswith("deduplication/")}
    assert stage_names >= {"keys", "candidates", "sent", "edges", "repeated"}
    assert stage_names >= {"contraction-000", "contraction-001", "clusters", "paragraphs"}
    done = [name for name in commits if name.startswith("finished")]
    assert len(done) == kills, "no unit was done twice"
    assert not [*(tmp_path / "killed").rglob("*.tmp-*")]


def test_second_run_does_nothing_and_a_new_unit_costs_one_signature(tmp_path: Path) -> None:
    store, files = write_documents(tmp_path, [*UNITS, ["a new text of few words", *UNITS[0][:2]]])
    with without_ray():
        before = digests(deduplicate(store, files[:3], ALL_STAGES))
    work = counted_work(store, files[:3])
    assert work == (before, [])
    _, done = counted_work(store, files)
    assert [name for name in done if "/signatures/" in name] == [
        f"deduplication/signatures/{files[3].unit}.bin"
    ]


def counted_work(store: CorpusStore, files: list[DocumentsFile]) -> tuple[list[object], list[str]]:
    """Run a deduplication; return its result and the files that it wrote."""
    written: list[str] = []
    finished = stages.UnitFiles.commit

    def counted(self: stages.UnitFiles) -> Any:
        written.extend(self._written)
        return finished(self)

    with without_ray(), patch.object(stages.UnitFiles, "commit", counted):
        return digests(deduplicate(store, files, ALL_STAGES)), written


@pytest.mark.integration
@pytest.mark.parametrize("tasks", [1, 4])
def test_any_number_of_tasks_gives_the_same(tmp_path: Path, tasks: int, ray_session: None) -> None:
    expected = undisturbed(tmp_path / "expected")
    store, files = write_documents(tmp_path / "tasks", UNITS)
    assert digests(deduplicate(store, files, ALL_STAGES, tasks=tasks)) == expected
