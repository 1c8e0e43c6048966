"""Checks of the sections about a corpus and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

from raymill.config.ranges import above, at_least, fraction, safe_name
from raymill.schema.data_sections import DataConfig, TokenizerConfig
from raymill.schema.extraction_section import ExtractionConfig
from raymill.schema.quality import QualityJob
from raymill.schema.storage import path_problems


def corpus_problems(data: DataConfig) -> Iterator[str]:
    """Yield what contradicts itself in cleaning, deduplication, decontamination and takedown."""
    yield from safe_name("data.corpus", data.corpus)
    yield from fraction("data.keep_rejects", data.keep_rejects)
    yield from _sources(data)
    yield from _cleaning(data)
    yield from _extraction(data.extraction)
    duplicates = data.deduplication
    for key in ("shingle_words", "bands", "band_rows", "paragraph_words"):
        yield from at_least(f"data.deduplication.{key}", getattr(duplicates, key), 1)
    yield from fraction("data.deduplication.min_similarity", duplicates.min_similarity)
    yield from at_least("data.deduplication.max_cluster", duplicates.max_cluster, 2)
    # Less would only make more and smaller tasks.
    yield from at_least("data.deduplication.memory_bytes", duplicates.memory_bytes, 2**24)
    yield from at_least("data.decontamination.ngram", data.decontamination.ngram, 1)
    yield from above("data.decontamination.max_share", data.decontamination.max_share, 0)
    paths = {"decontamination.path": data.decontamination.path, "takedown": data.takedown}
    for key, patterns in paths.items():
        for pattern in patterns or ():
            yield from path_problems(f"data.{key}", pattern)


def _sources(data: DataConfig) -> list[str]:
    problems: list[str] = []
    if data.sources:
        # Most jobs declare none, and need none of the formats.
        from raymill.data.sources.declared import declared_sources

        declared_sources(data, problems)
        if data.source != "files":
            problems.append(f"data.sources: choose data=files; data={data.source} is embedded text")
    return problems


def _extraction(extraction: ExtractionConfig) -> Iterator[str]:
    if extraction.extractor == "resiliparse" and extraction.focus != "balanced":
        yield (
            f"data.extraction.focus={extraction.focus}: is a choice of trafilatura's; leave it out, or set "
            "data.extraction.extractor=trafilatura"
        )
    yield from at_least("data.extraction.max_page_bytes", extraction.max_page_bytes, 1024)
    yield from at_least("data.extraction.max_depth", extraction.max_depth, 16)
    yield from above("data.extraction.max_cpu_s", extraction.max_cpu_s, 0)
    # Less than this isn't enough for a small page.
    yield from at_least("data.extraction.max_memory_bytes", extraction.max_memory_bytes, 2**26)


def _cleaning(data: DataConfig) -> list[str]:
    problems: list[str] = []
    if data.cleaning:
        # Most jobs clean nothing, and need none of the steps.
        from raymill.data.corpus.cleaning.declared import declared_steps

        declared_steps(data.cleaning, problems)
    return problems


def tokenizer_problems(tokenizer: TokenizerConfig) -> Iterator[str]:
    """Yield what is wrong with a tokenizer's settings."""
    yield from safe_name("tokenizer.name", tokenizer.name)
    if tokenizer.path is None and tokenizer.vocab_size < 257:
        yield (
            f"tokenizer.vocab_size={tokenizer.vocab_size}: must be at least 257 "
            "(256 bytes and the end of text)"
        )
    yield from at_least("tokenizer.train_bytes", tokenizer.train_bytes, 1024)


def quality_problems(job: QualityJob) -> list[str]:
    """Return what contradicts itself in the training of a classifier of quality."""
    problems = [*safe_name("name", job.name), *fraction("held_out", job.held_out, positive=True)]
    for key, paths in (("good", job.good), ("raw", job.raw)):
        if paths is None:
            problems.append(f"{key}: name documents, as in {key}=texts/")
        for path in paths or ():
            problems += path_problems(key, path)
    if job.held_out == 1:
        problems.append("held_out=1: must leave documents to train on")
    for key in ("documents", "ngram", "buckets", "characters"):
        problems += at_least(key, getattr(job, key), 1)
    return problems
