"""Another selection of a corpus gives the data of a first preparation, and encodes only what is new in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data.text.test_byte_pairs import TOKENIZERS
from raymill.data.corpus.documents import CorpusDocument, DocumentsWriter
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.selected_documents import HELD_OUT, LEFT_OUT, TRAINED, selection_path
from raymill.data.store.manifest import TOKENIZER_FOLDER
from raymill.data.text import tokenizer as room
from raymill.data.text.encoder import Encoder
from raymill.data.text.runs import Run
from raymill.data.text.shard_packer import PackedShard
from raymill.data.text.shuffle import BucketSettings, buckets_of, pack_bucket
from raymill.data.text.text_unit import Settings
from raymill.data.text.unit import UnitResult, run_unit
from raymill.durable import sha256_json

END = "<|endoftext|>"
DOCUMENTS = 40


def write_documents(corpus: Path) -> Path:
    path = corpus / "documents" / "unit.parquet"
    path.parent.mkdir(parents=True)
    with DocumentsWriter(path) as writer:
        for number in range(DOCUMENTS):
            text = f"document {number} " * (1 + number % 11)
            language = ("en", "de")[number % 2]
            sha256 = bytes([number]) * 32
            row = CorpusDocument(text, "web", "", language, "web/a.txt", number, 1, sha256)
            writer.add(row)
    return path


def prepared(corpus: Path, folder: Path, selection: Sequence[int]) -> tuple[UnitResult, Settings]:
    """The unit's result for a selection of the corpus."""
    path = corpus / "documents" / "unit.parquet"
    path = path if path.exists() else write_documents(corpus)
    chosen = corpus / selection_path("unit")
    chosen.parent.mkdir(exist_ok=True)
    chosen.write_bytes(np.array(selection, dtype=np.uint8).tobytes())
    tokenizer = TOKENIZERS["gpt2"]
    room.save(tokenizer, folder / TOKENIZER_FOLDER, END)
    identity = room.identity(tokenizer, END)
    reading = DocumentParser("text", None, 0.1, 7)
    settings = Settings(str(folder), reading, identity, END, 16, 4, shuffle_documents=True)
    name = f"documents/unit.parquet@{sha256_json(list(selection))[:16]}"
    span = InputRange(name, str(path), "documents", "train", 0, 1000, 1000, 0)
    return run_unit(0, (span,), settings), settings


def shards(result: UnitResult, settings: Settings) -> list[str]:
    """The digests of the held-out shard, and of the training shards that the runs are packed into."""
    runs = tuple(Run(**run) for run in result.facts["runs"])
    shared = BucketSettings(settings.rows("train"), settings.folder, runs)
    packed = [pack_bucket(bucket, shared) for bucket in buckets_of(runs, 1000)]
    held_out = PackedShard.from_tree(result.facts["packed"]["validation"])
    files = [one for shard in (held_out, *packed) if shard for one in (shard.shard, shard.lineage)]
    return [file.sha256 for file in files]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts that were encoded."""
    texts: list[str] = []
    pieces = Encoder.pieces

    def noted(self: Encoder, given: Sequence[str]) -> object:
        texts.extend(given)
        return pieces(self, given)

    monkeypatch.setattr(Encoder, "pieces", noted)
    return texts


def test_less_is_packed_without_encoding_and_more_by_encoding_only_that(
    tmp_path: Path, encoded: list[str]
) -> None:
    first = [
        LEFT_OUT if n % 5 == 0 else HELD_OUT if n % 7 == 0 else TRAINED for n in range(DOCUMENTS)
    ]
    taken_down = [LEFT_OUT if n in (3, 8, 28) else split for n, split in enumerate(first)]
    others = [TRAINED if n in (5, 10) else split for n, split in enumerate(taken_down)]
    counts = []
    for number, selection in enumerate((first, taken_down, others)):
        before = len(encoded)
        result, settings = prepared(tmp_path / "kept", tmp_path / f"data{number}", selection)
        counts.append(len(encoded) - before)
        anew, other = prepared(tmp_path / f"new{number}", tmp_path / f"anew{number}", selection)
        assert shards(result, settings) == shards(anew, other)
        assert result.facts["fertility"] == anew.facts["fertility"]
        assert result.inputs == anew.inputs
        assert result.documents == anew.documents == sum(split > 0 for split in selection)
        sums = result.facts["fertility"]["web"]["de"]
        texts = [f"document {n} " * (1 + n % 11) for n in range(1, DOCUMENTS, 2) if selection[n]]
        assert (sums["documents"], sums["words"]) == (len(texts), len(" ".join(texts).split()))
        assert sums["bytes"] == sum(map(len, texts))
    assert counts == [sum(split > 0 for split in first), 0, 2]


def test_what_is_damaged_or_of_other_documents_is_encoded_again(
    tmp_path: Path, encoded: list[str]
) -> None:
    corpus, selection = tmp_path / "kept", [TRAINED] * (DOCUMENTS - 1) + [HELD_OUT]
    first, _ = prepared(corpus, tmp_path / "one", selection)
    [run] = (corpus / "tokens").rglob("*.arrow")
    run.write_bytes(b"damaged")
    second, _ = prepared(corpus, tmp_path / "two", selection)
    assert len(encoded) == 2 * DOCUMENTS
    assert second.facts["fertility"] == first.facts["fertility"]
