"""Estimates of a preparation: a sample is prepared for real, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.corpus.corpus_factory import corpus_job, write_records
from raymill.data.sources.planning import plan_units
from raymill.data.text import estimate as module
from raymill.data.text.estimate import Estimate, estimate, sample_units


@pytest.mark.usefixtures("no_ray")
def test_a_sample_is_prepared_and_scaled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_BYTES", 12_000)
    monkeypatch.setattr(module, "PARTS", 2)
    monkeypatch.setattr(module, "PART_BYTES", 1 << 11)
    write_records(tmp_path / "texts", files=16, records=12)
    job = corpus_job(tmp_path)
    chosen = sample_units(job, 12_000)
    size = sum(span.length for unit in chosen for span in unit)
    total = sum(span.length for unit in plan_units(job.data, job.seed) for span in unit)
    assert 12_000 <= size < total / 2
    assert sample_units(job, 12_000) == chosen

    found = estimate(job)
    assert (found.input_bytes, found.sample_bytes) == (total, size)
    assert {*found.seconds} == {"clean", "selection", "tokenize"}
    assert min(found.seconds.values()) > 0
    assert found.documents > 0
    assert found.corpus_bytes > 0
    assert found.prepared_bytes > found.tokens
    assert [path.name for path in (tmp_path / "storage").iterdir()] == []


def test_hours_money_and_disk_follow_from_rates() -> None:
    found = Estimate(units=1000, input_bytes=10**12, sample_parts=8, sample_bytes=10**9)
    found.seconds = {"clean": 360.0, "tokenize": 36.0}
    found.corpus_bytes, found.prepared_bytes = 3 * 10**8, 10**8
    text = "\n".join(found.lines(cores=11, price=0.5))
    # 396 s for a thousandth are 110 core-hours.
    for expected in (
        "8 parts with 1000.0 of 1,000,000.0 MB (0.10%)",
        "2.78 MB/s of input per core, 100.00 core-hours",
        "110.00 core-hours: 10.00 h on 11 cores",
        "55.00, at 0.5 for a core-hour",
        "300.000 GB of corpus, 100.000 GB of tokens",
    ):
        assert expected in text
