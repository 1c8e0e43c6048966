"""An engine that was asked for is used, with the ids of `tokenizers`, or refused by a clear sentence."""

from __future__ import annotations

import importlib.util
import random
from typing import Any

import numpy as np
import pytest

from data.text.test_byte_pairs import PATTERNS, TEXTS, TOKENIZERS, changed, reference
from raymill.data.text import encoder as encoder_room
from raymill.data.text.byte_pairs import BytePairs
from raymill.data.text.encoder import Encoder
from raymill.data.text.engines import check_engine
from raymill.errors import DataError
from tokenizer_families import family

PIECES = [
    "a", "ab", " ", "  ", "\n", "\r\n", "\t", "'s", "'LL", "1", "23456", "_", "é", "\u3000", "\x85", "\x00",
    "数", "\u0301", "😀", "\u200d", "(", "...", "<|endoftext|>", "don't", "\ufeff",
]  # fmt: skip


def _lower(tree: dict[str, Any]) -> None:
    tree["normalizer"] = {"type": "Lowercase"}


def test_each_engine_is_the_one_that_was_asked_for() -> None:
    plain = TOKENIZERS["gpt2"]
    names = {
        engine: Encoder(plain, 0, engine).engine for engine in ("auto", "tiktoken", "huggingface")
    }
    assert names == {"auto": "tiktoken", "tiktoken": "tiktoken", "huggingface": "huggingface"}
    assert Encoder(changed(_lower), 0).engine == "huggingface"
    assert Encoder(family("unigram"), 0).engine == "huggingface"


def test_an_engine_that_cannot_encode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.engine=tiktoken.*isn't plain"):
        Encoder(changed(_lower), 0, "tiktoken")
    with pytest.raises(DataError, match=r"tokenizer\.engine=tiktoken.*isn't byte-level"):
        Encoder(family("unigram"), 0, "tiktoken")
    monkeypatch.setattr(BytePairs, "ids", lambda self, text: np.zeros(1, dtype=np.uint32))
    with pytest.raises(DataError, match="tiktoken's ids differ"):
        list(Encoder(TOKENIZERS["gpt2"], 0, "tiktoken").encode(["one text"]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"tokenizer\.engine=gigatoken.*pip install gigatoken"):
        check_engine("gigatoken")


def test_a_long_document_comes_in_pieces_with_the_ids_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(encoder_room, "SLICE_CHARACTERS", 2000)
    for name in PATTERNS:
        text = "".join(TEXTS)[:20_000] + "x" * 5000 + " " * 3000 + "end"
        pieces = list(Encoder(TOKENIZERS[name], 0).pieces([text, "short"]))
        *long, last, short = pieces
        assert len(long) >= 8, "no piece is much longer than a window"
        assert [piece.ends for piece in pieces] == [False] * len(long) + [True, True]
        ids = np.concatenate([piece.ids for piece in (*long, last)]).tolist()
        assert ids == reference(TOKENIZERS[name], text)
        assert short.ids.tolist() == reference(TOKENIZERS[name], "short")
        assert sum(int(piece.token_bytes.sum()) for piece in (*long, last)) == len(text.encode())


@pytest.mark.skipif(importlib.util.find_spec("gigatoken") is None, reason="gigatoken is optional")
@pytest.mark.parametrize("name", ["gpt2", "llama3", "qwen2"])
def test_gigatoken_has_equal_ids(name: str) -> None:
    encoder = Encoder(TOKENIZERS[name], 0, "gigatoken")
    generator = random.Random(name)
    texts = [*TEXTS, *("".join(generator.choices(PIECES, k=20)) for _ in range(400))]
    for text, found in zip(texts, encoder.encode(texts), strict=True):
        assert found.ids.tolist() == reference(TOKENIZERS[name], text), text
