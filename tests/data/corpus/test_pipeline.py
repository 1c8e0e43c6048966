"""A corpus from files to shards: counted, restartable wherever it is killed, and the same on any storage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import pytest

from data.corpus.corpus_factory import CLEANING, STEP, corpus_job, stored_on, write_records
from data.in_process import without_ray
from raymill.data.corpus import clean, stages
from raymill.data.corpus.documents import read_documents
from raymill.data.corpus.funnel import funnel
from raymill.data.corpus.prepare import PreparedCorpus, find_corpus, prepare_corpus
from raymill.data.sources.planning import plan_units
from raymill.data.store.location import corpus_folder
from raymill.data.text.prepare import describe, prepare_with_ray, run
from raymill.errors import DataError
from raymill.schema.jobs import PrepareJob
from sections import NO_DECONTAMINATION, NO_DEDUPLICATION


def prepared(job: PrepareJob) -> PreparedCorpus:
    return prepare_corpus(job, plan_units(job.data, job.seed))


@contextmanager
def counted_units() -> Iterator[list[str]]:
    """The names of the units that are cleaned."""
    names: list[str] = []
    work = clean.clean_unit

    def counted(item: tuple[str, object], *rest: object) -> object:
        names.append(item[0])
        return work(item, *rest)  # type: ignore[arg-type]

    with patch("raymill.data.corpus.prepare.clean_unit", counted):
        yield names


def kept_by_hand(records: list[dict[str, str]]) -> list[str]:
    texts = [r["text"].upper() if r["text"].startswith("a") else r["text"] for r in records]
    return [text for text in texts if len(text.split()) >= 30]


@pytest.mark.usefixtures("no_ray")
def test_documents_are_cleaned_counted_and_keep_their_origin(tmp_path: Path) -> None:
    records = write_records(tmp_path / "texts", files=6, records=12)
    corpus = prepared(corpus_job(tmp_path, keep_rejects=1.0))
    assert len(corpus.documents) > 3
    documents = [
        document
        for file in corpus.documents
        for document in read_documents(corpus.store.path(file.path))
    ]
    assert [document.text for document in documents] == kept_by_hand(records)
    for document in documents:
        stored = (tmp_path / "texts" / Path(document.file).name).read_bytes()
        line = stored[document.offset : document.offset + document.length]
        assert json.loads(line)["text"].upper() == document.text.upper()
        assert document.signals == {f"{STEP}.words": len(document.text.split())}

    [counts] = corpus.manifest["facts"]["sources"].values()
    dropped = len(records) - len(documents)
    assert counts["documents"] == len(records)
    assert counts["kept"] == len(documents)
    assert counts["dropped"] == {STEP: {"few words": dropped}}
    assert counts["characters"] == sum(len(record["text"]) for record in records)
    splits = corpus.manifest["facts"]["splits"]
    assert splits["train"]["documents"] + splits["validation"]["documents"] == len(documents)
    assert any(f"−{dropped:,}" in line for line in funnel(corpus))

    samples = [
        json.loads(line)
        for path in sorted(corpus.store.path("samples").glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    rejects = [sample for sample in samples if "reason" in sample]
    assert len(rejects) == dropped
    assert {(sample["step"], sample["reason"]) for sample in rejects} == {(STEP, "few words")}
    for sample in samples:
        if "after" in sample:
            assert sample["after"] == sample["before"].upper() != sample["before"]


@pytest.mark.usefixtures("no_ray")
def test_again_does_nothing_and_a_new_file_costs_one_unit(tmp_path: Path) -> None:
    write_records(tmp_path / "texts", files=6, records=12)
    job = corpus_job(tmp_path)
    first = prepared(job)
    with counted_units() as done:
        again = prepared(job)
    assert done == []
    assert again.digest == first.digest
    assert find_corpus(job, plan_units(job.data, job.seed)) == first

    # In the middle of the others by its name.
    added = tmp_path / "texts" / "0-03b.jsonl"
    added.write_text(json.dumps({"text": "one more document " * 20}) * 1)
    with counted_units() as done:
        more = prepared(job)
    assert len(done) == 1, "one unit"
    assert more.digest != first.digest
    added.unlink()
    with counted_units() as done:
        assert prepared(job).digest == first.digest
    assert len(done) <= 1
    names = {file.unit for file in first.documents}
    for folder in ("documents", "inputs", "samples", "clean", "selection"):
        left = {path.name.partition(".")[0] for path in first.store.path(folder).iterdir()}
        assert left == names, folder


@pytest.mark.usefixtures("no_ray")
def test_duplicates_are_left_out_and_another_threshold_cleans_nothing(tmp_path: Path) -> None:
    records = write_records(tmp_path / "texts", files=3, records=12)
    copies = [json.dumps(record | {"url": ""}) for record in records[:12]]
    (tmp_path / "texts" / "z-copies.jsonl").write_text("\n".join(copies))
    equal = replace(NO_DEDUPLICATION, documents=True)
    job = corpus_job(tmp_path, deduplication=equal)
    corpus = prepared(job)
    splits = corpus.manifest["facts"]["splits"]
    kept = kept_by_hand(records)
    assert splits["train"]["documents"] + splits["validation"]["documents"] == len(kept)
    gone = len(kept_by_hand(records[:12]))
    assert corpus.manifest["facts"]["duplicates"]["histogram"] == {"2": gone}
    assert any(f"−{gone} in {gone} clusters" in line for line in funnel(corpus))
    with counted_units() as done:
        near = replace(equal, near=True)
        again = prepared(replace(job, data=replace(job.data, deduplication=near)))
    assert done == []
    assert again.store == corpus.store
    with without_ray():
        assert prepare_with_ray(job).manifest.documents == len(kept)


@pytest.mark.usefixtures("no_ray")
def test_evaluation_sets_and_takedowns_are_left_out_without_cleaning_again(tmp_path: Path) -> None:
    records = write_records(tmp_path / "texts", files=3, records=12)
    kept = [record for record in records if len(record["text"].split()) >= 30]
    plain_job = corpus_job(tmp_path)
    before = prepared(plain_job)
    (tmp_path / "quiz.txt").write_text(" ".join(kept[4]["text"].split()[3:20]))
    documents = read_documents(before.store.path(before.documents[-1].path))
    first, second = (f"{document.file}@{document.offset}" for document in islice(documents, 2))
    (tmp_path / "gone.txt").write_text(f"# by request\n{first}\n")
    sets = replace(NO_DECONTAMINATION, path=(str(tmp_path / "quiz.txt"),), max_share=0.5)
    job = corpus_job(tmp_path, decontamination=sets, takedown=(str(tmp_path / "gone.txt"),))
    with counted_units() as done:
        corpus = prepared(job)
    assert done == []
    facts = corpus.manifest["facts"]
    assert sum(facts["contaminated"]["dropped"].values()) == 1
    splits = facts["splits"]
    assert splits["train"]["documents"] + splits["validation"]["documents"] == len(kept) - 2
    (tmp_path / "gone.txt").write_text(f"{first}\n{second}\n")
    assert prepared(job).digest != corpus.digest, "the list has changed"
    assert prepared(plain_job).digest == before.digest


class KilledError(BaseException):
    """The process ends here."""


@contextmanager
def killed_at(number: int) -> Iterator[None]:
    """End at the `number`th rename or sidecar, and leave everything as it is then."""
    left = number
    rename, write_json = Path.replace, stages.CorpusStore.write_json

    def may_end() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError

    def renamed(path: Path, target: Path) -> Path:
        may_end()
        return rename(path, target)

    def written(store: stages.CorpusStore, name: str, tree: dict[str, object]) -> None:
        may_end()
        write_json(store, name, tree)

    with (
        patch.object(Path, "replace", renamed),
        patch.object(stages.CorpusStore, "write_json", written),
        patch.object(stages.UnitFiles, "discard", lambda self: None),
    ):
        yield


@pytest.mark.usefixtures("no_ray")
def test_a_kill_at_any_point_leaves_what_the_next_try_completes(tmp_path: Path) -> None:
    write_records(tmp_path / "texts", files=3, records=12)
    straight = prepared(corpus_job(tmp_path, root="straight"))
    number, kills = 0, 0
    while True:
        job = corpus_job(tmp_path, root=f"killed-{number}")
        try:
            with killed_at(number):
                prepared(job)
            break
        except KilledError:
            kills += 1
        assert find_corpus(job, plan_units(job.data, job.seed)) is None
        with counted_units() as done:
            continued = prepared(job)
        # Four files and a sidecar, which is counted twice.
        assert len(done) <= max(0, len(straight.documents) - number // 6)
        assert continued.digest == straight.digest
        assert not list(Path(continued.store.folder).rglob("*.tmp-*"))
        number += 1
    assert kills > 6 * len(straight.documents)


@pytest.mark.usefixtures("no_ray")
def test_an_object_store_gives_the_same_and_another_machine_continues(
    tmp_path: Path, uri: str
) -> None:
    write_records(tmp_path / "texts", files=3, records=12)
    job = corpus_job(tmp_path)
    on_disk = prepared(job)
    here = stored_on(job, uri, tmp_path / "one")
    stopped = 9
    with pytest.raises(KilledError), killed_at(stopped):
        prepared(here)
    there = stored_on(job, uri, tmp_path / "two")
    with counted_units() as done:
        corpus = prepared(there)
    assert len(done) < len(corpus.documents), "finished units are found in the store"
    assert corpus.digest == on_disk.digest
    third = stored_on(job, uri, tmp_path / "three")
    with counted_units() as done:
        corpus = prepared(third)
    assert done == []
    corpus.fetch()
    assert [read.path for unit in corpus.units() for read in unit] != []
    for unit in corpus.units():
        assert Path(unit[0].path).exists()


@pytest.mark.usefixtures("no_ray")
def test_a_step_that_drops_too_much_is_named_with_the_source(tmp_path: Path) -> None:
    write_records(tmp_path / "texts", files=2, records=12)
    strict = {**CLEANING, STEP: {"min_words": 80, "max_dropped": 0.1}}
    with pytest.raises(
        DataError, match=rf"The step {STEP} dropped .* of the source .*max_dropped=0\.1"
    ):
        prepared(corpus_job(tmp_path, cleaning=strict))
    nothing = {STEP: {"min_words": 1000}}
    with pytest.raises(DataError, match="No document is left"):
        prepared(corpus_job(tmp_path, cleaning=nothing))


@pytest.mark.usefixtures("no_ray")
def test_bad_records_are_limited_as_elsewhere(tmp_path: Path) -> None:
    write_records(tmp_path / "texts", files=2, records=12)
    (tmp_path / "texts" / "z.jsonl").write_text('{"text": 1}\n{broken\n')
    with pytest.raises(
        DataError, match=r"2 of 26 records can't be used.*max_bad_fraction(.|\n)*z\.jsonl:2"
    ):
        prepared(corpus_job(tmp_path))
    corpus = prepared(corpus_job(tmp_path, max_bad_fraction=0.5))
    assert corpus.manifest["facts"]["bad"] == 2


def test_a_cleaned_corpus_is_tokenized_and_serves_a_second_time(tmp_path: Path) -> None:
    records = write_records(tmp_path / "texts", files=4, records=12)
    job = corpus_job(tmp_path)
    with without_ray():
        tokenized = prepare_with_ray(job)
        assert tokenized.manifest.documents == len(kept_by_hand(records))
        with counted_units() as done:
            longer = prepare_with_ray(replace(job, data=replace(job.data, sequence_length=64)))
        assert done == []
    assert longer.folder != tokenized.folder
    total = sum(len(text.encode()) for text in kept_by_hand(records))
    for one in (tokenized, longer):
        splits = one.manifest.splits
        assert splits["train"].bytes + splits["validation"].bytes == total
    write_records(tmp_path / "texts", files=1, records=12, seed=1)
    with without_ray():
        with pytest.raises(
            DataError, match=r"added: documents/.*data\.name, with data\.corpus=tiny"
        ):
            prepare_with_ray(job)
        with counted_units() as done:
            grown = replace(job.data, name="grown", corpus="tiny")
            assert prepare_with_ray(replace(job, data=grown)).manifest.name == "grown"
        assert done == [], "the refused preparation has cleaned the new file"
    (tmp_path / "texts" / "1-00.jsonl").unlink()
    with without_ray():
        prepared(job)
    # Without Ray: everything is there.
    assert run(job).manifest.digest == tokenized.manifest.digest
    assert "(finished)" in describe(job)
    assert f"clean (shorten, {STEP}), hold out" in describe(job)


def test_parallelism_does_not_matter(tmp_path: Path, ray_session: None) -> None:
    write_records(tmp_path / "texts", files=3, records=12)
    (tmp_path / "texts" / "z.jsonl").write_bytes(next((tmp_path / "texts").iterdir()).read_bytes())
    near = replace(NO_DEDUPLICATION, documents=True, near=True)
    digests = set()
    for tasks in (1, 2, 4):
        # Workers know only the steps of the package.
        settings: dict[str, object] = {"cleaning": {}, "deduplication": near}
        job = corpus_job(tmp_path, root=f"tasks-{tasks}", **settings)
        units = plan_units(job.data, job.seed)
        digests.add(prepare_corpus(job, units, tasks=tasks).digest)
    assert len(digests) == 1


KILLED = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import ray
from data.corpus.test_pipeline import killed_job
from raymill.data.text.prepare import prepare_with_ray
ray.init(address={address!r}, log_to_driver=False)
prepare_with_ray(killed_job(Path({folder!r}), {root!r}), tasks=2)
"""


def killed_job(tmp_path: Path, root: str) -> PrepareJob:
    """A corpus of all stages, with steps that workers know."""
    cleaning = {
        "normalize": {
            "form": "NFC",
            "controls": True,
            "invisible": True,
            "spaces": True,
            "collapse_spaces": False,
            "max_empty_lines": 2,
        }
    }
    near = replace(NO_DEDUPLICATION, documents=True, near=True, paragraphs=True)
    return corpus_job(tmp_path, root=root, cleaning=cleaning, deduplication=near)


@pytest.mark.chaos
def test_a_driver_killed_in_any_stage_is_continued(tmp_path: Path, ray_session: None) -> None:
    import ray

    write_records(tmp_path / "texts", files=8, records=12)
    path = [str(Path(__file__).parents[2]), *sys.path]
    address = ray.get_runtime_context().gcs_address
    straight = prepare_with_ray(killed_job(tmp_path, "straight"), tasks=2)
    stages = ("clean", "deduplication/signatures", "deduplication/edges", "selection", "data")
    job = killed_job(tmp_path, "killed")
    folder = corpus_folder(job.data, job.storage.folder)
    for stage in stages:
        script = KILLED.format(path=path, address=address, folder=str(tmp_path), root="killed")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        driver = subprocess.Popen([sys.executable, "-c", script], env=environment)
        place = tmp_path / "killed" / "data" if stage == "data" else folder / stage
        try:
            deadline = time.monotonic() + 120
            while not place.exists() or len(list(place.iterdir())) < 1:
                assert driver.poll() is None, f"it ended before {stage}"
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
    continued = prepare_with_ray(job, tasks=2)
    assert continued.manifest.digest == straight.manifest.digest
    ours = json.loads((folder / "manifest.json").read_text())
    other = corpus_folder(job.data, tmp_path / "straight") / "manifest.json"
    assert ours == json.loads(other.read_text())
