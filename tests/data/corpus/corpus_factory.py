"""Small corpora for tests: texts to read, a step that drops some, and the job that prepares them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from data.prepared_factory import _write_tokenizer
from raymill.data.corpus.cleaning.step import STEPS, CleaningStep, register
from raymill.data.corpus.draft import Draft
from raymill.schema.data_sections import DataConfig, TokenizerConfig, ValidationConfig
from raymill.schema.jobs import PrepareJob
from raymill.schema.sections import ClusterConfig
from raymill.schema.storage import StorageConfig
from sections import plain

STEP = "few_words_in_a_test"
CLEANING: dict[str, dict[str, object]] = {
    "shorten": {"step": "shout_in_a_test"},
    STEP: {"min_words": 30, "max_dropped": 0.9},
}


@dataclass(frozen=True)
class FewWords(CleaningStep):
    """Drops documents of few words."""

    name: ClassVar[str] = STEP
    follows: ClassVar[str] = "nobody"
    min_words: int

    def apply(self, draft: Draft) -> str | None:
        draft.signals[f"{self.name}.words"] = len(draft.pieces)
        return "few words" if len(draft.pieces) < self.min_words else None


@dataclass(frozen=True)
class Shout(CleaningStep):
    """Changes the texts that begin with a."""

    name: ClassVar[str] = "shout_in_a_test"
    follows: ClassVar[str] = "nobody"

    def apply(self, draft: Draft) -> str | None:
        if draft.text.startswith("a"):
            draft.replace_text(draft.text.upper())
        return None


for _step in (FewWords, Shout):
    if _step.name not in STEPS:
        register(_step)


def write_records(folder: Path, files: int, records: int, seed: int = 0) -> list[dict[str, str]]:
    """Files of JSON lines, whose texts have 10 to 90 words; returned in order."""
    folder.mkdir(parents=True, exist_ok=True)
    source = random.Random(seed)
    words = ["".join(source.choices("abcdeéß", k=source.randint(2, 7))) for _ in range(300)]
    written = []
    for number in range(files):
        lines = []
        for row in range(records):
            text = " ".join(source.choices(words, k=source.randint(10, 90)))
            lines.append({"text": text, "url": f"https://example.org/{seed}/{number}/{row}"})
        written += lines
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{seed}-{number:02d}.jsonl").write_text(content, encoding="utf-8")
    return written


def corpus_job(tmp_path: Path, *, root: str = "storage", **data: object) -> PrepareJob:
    """A job that cleans `texts/` and tokenizes it with a tokenizer that exists."""
    if not (tmp_path / "tokenizer").exists():
        _write_tokenizer(tmp_path / "tokenizer", 300)
    settings: dict[str, object] = {
        "name": "tiny",
        "source": "files",
        "path": (str(tmp_path / "texts"),),
        "sequence_length": 32,
        "row_group_rows": 4,
        "shard_input_bytes": 4000,
        "validation": plain(ValidationConfig, fraction=0.25),
        "cleaning": CLEANING,
    }
    return plain(
        PrepareJob,
        data=plain(DataConfig, **{**settings, **data}),
        tokenizer=plain(TokenizerConfig, name="bytes", path=str(tmp_path / "tokenizer")),
        cluster=plain(ClusterConfig, name="local", address="local"),
        storage=plain(StorageConfig, root=str(tmp_path / root)),
    )


def stored_on(job: PrepareJob, uri: str, scratch: Path) -> PrepareJob:
    """The same job with an object store."""
    return replace(job, storage=StorageConfig(root=uri, scratch=str(scratch)))
