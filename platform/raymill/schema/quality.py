"""Configuration of `jobs/prepare.py kind=quality`."""

from __future__ import annotations

from dataclasses import dataclass

from raymill.schema.storage import StorageConfig


@dataclass(frozen=True)
class QualityJob:
    """`jobs/prepare.py kind=quality`: train the classifier of quality that `data.cleaning.quality` uses."""

    name: str
    good: tuple[str, ...] | None
    raw: tuple[str, ...] | None
    text_column: str
    documents: int
    held_out: float
    ngram: int
    buckets: int
    characters: int
    seed: int
    storage: StorageConfig
    dry_run: bool
