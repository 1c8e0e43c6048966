"""Training is repeatable, text can't forge control tokens, and bytes are counted exactly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from raymill.data.demo.stdlib_corpus import read as read_stdlib
from raymill.data.sources.documents import DocumentParser
from raymill.data.sources.inputs import InputRange
from raymill.data.sources.planning import plan_units
from raymill.data.sources.records import read_records
from raymill.data.store.manifest import tokenizer_fingerprint
from raymill.data.text import encoder as encoder_module
from raymill.data.text import tasks
from raymill.data.text import tokenizer as room
from raymill.data.text.encoder import Encoder
from raymill.errors import DataError
from raymill.schema.data_sections import DataConfig, TokenizerConfig
from sections import plain

EOT = "<|endoftext|>"
CONFIG = plain(TokenizerConfig, name="t", vocab_size=600)
TEXTS = ["the cat sat on the mat. " * 20, "größer, höher, weiter 漢字 🙂 " * 10, "x = f(x)\n" * 30]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return room.train(iter(TEXTS), CONFIG)


def test_training_again_elsewhere_gives_the_same_fingerprint() -> None:
    """Train in processes with other hash seeds and thread counts, on text with many ties."""
    script = (
        "from raymill.data.text import tokenizer as t;"
        "from raymill.data.demo import stdlib_corpus as s;"
        "from sections import plain;"
        "from raymill.schema.data_sections import TokenizerConfig as C;"
        "texts=[s.read('source/json/decoder.py'), s.read('source/ast.py')];"
        "print(t.fingerprint(t.train(iter(texts), plain(C, 't', vocab_size=1500))))"
    )
    found = set()
    for threads, seed in (("1", "1"), ("4", "2")):
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": seed}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        found.add(done.stdout.strip())
    texts = [read_stdlib("source/json/decoder.py"), read_stdlib("source/ast.py")]
    here = room.train(iter(texts), plain(TokenizerConfig, "t", vocab_size=1500))
    assert found == {room.fingerprint(here)}


def test_text_that_spells_a_special_token_stays_text(trained: Tokenizer) -> None:
    eot = trained.token_to_id(EOT)
    text = f"before{EOT}after"
    [encoded] = Encoder(trained, eot).encode([text])
    assert eot not in encoded.ids
    assert encoded.token_bytes.sum() == len(text)
    assert trained.decode(encoded.ids.tolist(), skip_special_tokens=False) == text


@settings(deadline=None)
@given(st.lists(st.text(max_size=200), max_size=5))
def test_bytes_add_up_for_every_text(trained: Tokenizer, texts: list[str]) -> None:
    encoder = Encoder(trained, trained.token_to_id(EOT))
    for text, encoded in zip(texts, encoder.encode(texts), strict=True):
        assert encoded.token_bytes.sum() == len(text.encode())
        assert len(encoded.ids) == len(encoded.token_bytes)
        assert trained.decode(encoded.ids.tolist()) == text


@settings(deadline=None)
@given(st.text(st.sampled_from("aÄb漢 🙂\nſ"), min_size=1, max_size=60))
def test_bytes_add_up_where_a_normaliser_changes_the_text(text: str) -> None:
    """No byte table there: characters' ends telescope."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, EOT: 1, "a": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    [encoded] = Encoder(tokenizer, 1).encode([text])
    assert not len(encoded.ids) or encoded.token_bytes.sum() == len(text.encode())
    assert (encoded.token_bytes >= 0).all()


def test_a_long_document_is_encoded_in_slices(
    trained: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder_module, "SLICE_CHARACTERS", 50)
    text = "".join(f"line {i} größe\n" for i in range(40)) + "e" * 200
    encoder = Encoder(trained, trained.token_to_id(EOT))
    encoded = list(encoder.encode(["", text, "short"]))
    assert [int(e.token_bytes.sum()) for e in encoded] == [0, len(text.encode()), 5]
    assert trained.decode(encoded[1].ids.tolist()) == text


def test_the_saved_folder_loads_with_transformers(trained: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    room.save(trained, tmp_path, EOT)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.eos_token == loaded.bos_token == loaded.pad_token == EOT
    assert loaded.eos_token_id == trained.token_to_id(EOT)
    text = "the cat is größer 🙂"
    assert loaded.decode(loaded.encode(text, add_special_tokens=False)) == text
    assert loaded.encode(text, add_special_tokens=False) == (
        trained.encode(text, add_special_tokens=False).ids
    )


def test_saving_and_loading_keeps_the_fingerprint(trained: Tokenizer, tmp_path: Path) -> None:
    room.save(trained, tmp_path, EOT)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = room.load(path, EOT)
        assert room.identity(loaded, EOT) == room.identity(trained, EOT)
    assert tokenizer_fingerprint(tmp_path / "tokenizer.json") == room.fingerprint(trained)
    assert room.identity(trained, EOT).vocab_size == trained.get_vocab_size()


def test_padding_truncation_and_added_bos_of_a_loaded_tokenizer_are_undone(
    trained: Tokenizer, tmp_path: Path
) -> None:
    trained.enable_truncation(4)
    trained.enable_padding(length=8)
    trained.save(str(tmp_path / "tokenizer.json"))
    trained.no_truncation()
    trained.no_padding()
    loaded = room.load(tmp_path, EOT)
    [encoded] = Encoder(loaded, loaded.token_to_id(EOT)).encode(["the cat sat on the mat"])
    assert encoded.token_bytes.sum() == 22


def test_loading_what_is_not_there_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.path: .*tokenizer\.json doesn't exist"):
        room.load(tmp_path, EOT)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"no": "tokenizer"}))
    with pytest.raises(DataError, match=r"isn't a tokenizer\.json"):
        room.load(tmp_path, EOT)


def test_loading_without_its_end_of_text_names_the_special_tokens(
    trained: Tokenizer, tmp_path: Path
) -> None:
    room.save(trained, tmp_path, EOT)
    with pytest.raises(DataError, match=r"no special token '</s>'.*<\|endoftext\|>"):
        room.load(tmp_path, "</s>")


@pytest.mark.parametrize("eos", ["</s>", {"content": "</s>"}])
def test_an_existing_tokenizer_names_its_own_end_of_text(eos: object, tmp_path: Path) -> None:
    config = plain(TokenizerConfig, "existing", path=str(tmp_path), end_of_text="auto")
    assert room.end_of_text_of(config) == EOT
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    assert room.end_of_text_of(config) == "</s>"
    assert room.end_of_text_of(replace(config, end_of_text="<s>")) == "<s>"


def test_ids_fit_the_byte_table(trained: Tokenizer) -> None:
    encoder = Encoder(trained, trained.token_to_id(EOT))
    [encoded] = encoder.encode(["漢"])
    assert int(encoded.token_bytes.sum()) == 3
    assert encoded.ids.dtype == encoded.token_bytes.dtype == np.uint32


def test_a_pattern_gives_identifiers_the_same_tokens_everywhere() -> None:
    pattern = r"[^\W\d_]+ (?=[^\W\d_])|[^\W\d_]+|\d| ?[^\w\s]+ ?|\s+"
    texts = ["load(path, size=64) takes `size`, and a size of 64"] * 50
    config = plain(TokenizerConfig, "t", vocab_size=400, pattern=pattern)
    tokenizer = room.train(iter(texts), config)
    [size] = tokenizer.encode("size").ids
    for text in ("(size)", "`size`", "a size", ", size=7", "(path, size)"):
        assert size in tokenizer.encode(text).ids, text
    assert [tokenizer.id_to_token(i) for i in tokenizer.encode("645").ids] == ["6", "4", "5"]
    assert tokenizer.decode(tokenizer.encode(texts[0]).ids) == texts[0]


def test_no_input_is_opened_once_the_sample_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.jsonl").write_text(f'{{"text": "{number % 10}abc"}}\n' * 8)
    config = plain(
        DataConfig,
        name="d",
        source="files",
        path=(str(tmp_path),),
        shard_input_bytes=8 * 17,
        text_column="text",
    )
    units = plan_units(config, 1)
    opened: list[str] = []

    def counted(piece: InputRange, *others: Any) -> Iterator[Any]:
        opened.append(piece.name)
        for record in read_records(piece, *others):
            opened.append(record.text)
            yield record

    monkeypatch.setattr(tasks, "read_records", counted)
    monkeypatch.setattr(tasks, "MIN_SAMPLE_BYTES", 6)
    reading = DocumentParser("text", None, 0.5, 1)
    texts = list(tasks.training_sample(units, reading, 18))
    assert 12 < sum(len(text.encode()) for text in texts) <= 18
    read = [name for name in opened if name.endswith(".jsonl")]
    assert len(read) == 3, "three shares of six bytes fill it"
    assert len(opened) - len(read) == len(texts), "nor is a record read for nothing"
