"""`jobs/prepare.py kind=quality`: read good and raw documents, train the classifier, and write its file.

One process on the driver does it: 20,000 documents of each kind take about a minute.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

from raymill.data.corpus.quality_model import Features, QualityModel
from raymill.data.corpus.quality_training import train
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.files import find_files
from raymill.data.sources.format import Bad
from raymill.data.sources.records import read_records
from raymill.durable import sha256_file
from raymill.errors import DataError
from raymill.schema.quality import QualityJob
from raymill.storage.mirror import upload_folder


def describe(job: QualityJob) -> str:
    """Describe the input and output of `run`; no text is read."""
    good, raw = (len(find_files(paths or (), key)) for key, paths in _inputs(job))
    return (
        f"{good} files of good text and {raw} of raw text, at most {job.documents:,} documents of each → "
        f"{_folder(job) / job.name}-<digest>.safetensors"
    )


def run(job: QualityJob) -> Path:
    """Train the classifier; return the path of its file, whose name has its digest.

    Raises:
        DataError: there is too little input, or half of it can't be used.
    """
    good, raw = (_read(job, key, paths or ()) for key, paths in _inputs(job))
    features = Features(job.ngram, job.buckets, job.characters)
    model = train(good, raw, features, held_out=job.held_out, seed=job.seed)
    folder = _folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    unnamed = folder / f"{job.name}.safetensors"
    model.save(unnamed)
    path = folder / f"{job.name}-{sha256_file(unnamed)[:12]}.safetensors"
    unnamed.replace(path)
    upload_folder(job.storage, folder, path.name)
    print(_summary(model, path))
    return path


def _inputs(job: QualityJob) -> tuple[tuple[str, tuple[str, ...] | None], ...]:
    return ("good", job.good), ("raw", job.raw)


def _folder(job: QualityJob) -> Path:
    return job.storage.folder.absolute() / "quality"


def _read(job: QualityJob, key: str, paths: Sequence[str]) -> list[str]:
    """Return the beginnings of at most `documents` documents, from files in random order."""
    parser = DocumentParser(job.text_column, None, 0.0, job.seed)
    files = find_files(paths, key)
    random.Random(job.seed).shuffle(files)
    texts: list[str] = []
    bad: list[Bad] = []
    for file in files:
        for record in read_records(file, parser, hashlib.sha256()):
            if isinstance(record, Bad):
                bad.append(record)
            elif record.text.strip():
                texts.append(record.text[: job.characters])
            if len(texts) == job.documents:
                return texts
    if len(bad) > len(texts):
        raise DataError(
            f"{key}: {len(bad):,} of {len(bad) + len(texts):,} records can't be used, such as "
            f"{bad[0].where}: {bad[0].why}."
        )
    return texts


def _summary(model: QualityModel, path: Path) -> str:
    training = model.training
    return (
        f"trained on {training.good:,} good and {training.raw:,} raw documents; of "
        f"{training.held_out_good:,} and {training.held_out_raw:,} others, {training.accuracy:.1%} are "
        f"classified correctly (AUC {training.auc:.4f})\n"
        f"{path}\n"
        f"use it: python jobs/prepare.py … data.cleaning.quality.model={path}"
    )
