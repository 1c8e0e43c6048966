"""tiktoken's ids are those of `tokenizers`, and what isn't plain byte-level BPE is left to the latter."""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from raymill.data.text.byte_pairs import GPT2_PATTERN, BytePairs, byte_pairs
from raymill.data.text.encoder import Encoder

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
WORDS = r"_*[^\W\d_]+|\d| ?(?:[^\w\s]|_)+|\s+"
PATTERNS = {"gpt2": None, "llama3": LLAMA3, "qwen2": QWEN2, "words": WORDS}
TEXTS = [
    Path(argparse.__file__).read_text(encoding="utf-8")[:60_000],
    "ünïcödé 数字数字 עברית ".replace(" ", " \n") * 50,
]


def trained(pattern: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    split = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, byte_level]) if split else byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


TOKENIZERS = {name: trained(pattern) for name, pattern in PATTERNS.items()}


def reference(tokenizer: Tokenizer, text: str) -> list[int]:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    return list(copy.encode(text, add_special_tokens=False).ids)


def fast(name: str) -> BytePairs:
    encoder = byte_pairs(TOKENIZERS[name])
    assert encoder is not None, "plain byte-level BPE"
    return encoder


@pytest.mark.parametrize("name", PATTERNS)
def test_equal_ids_for_any_text(name: str) -> None:
    encoder, tokenizer = fast(name), TOKENIZERS[name]

    @settings(max_examples=150, deadline=None, database=None)
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
    def compare(text: str) -> None:
        ids = encoder.ids(text)
        assert ids is not None
        assert ids.tolist() == reference(tokenizer, text)

    compare()
    generator = random.Random(name)
    pieces = ["a", "b", "ab", "aa", " ", "  ", "\n", "\t", "'s", "'LL", "1", "23", "_", "é", "\u3000",
              "\x85", "\u2028", "<|endoftext|>", "数", "\u0301", "😀", "\u200d", "(", "..."]  # fmt: skip
    for _ in range(400):
        compare_text = "".join(generator.choices(pieces, k=generator.randrange(1, 30)))
        ids = encoder.ids(compare_text)
        assert ids is not None
        assert ids.tolist() == reference(tokenizer, compare_text), compare_text


def test_both_know_the_same_letters_digits_and_spaces() -> None:
    encoder = fast("gpt2")
    copy = Tokenizer.from_str(TOKENIZERS["gpt2"].to_str())
    characters = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    # Every class of characters is in the first planes; the others hold few blocks.
    sample = [*characters[:0x3400], *characters[0x3400::97]]
    texts = [f"a{c} b{c}1{c}{c} '{c}\n" for c in sample]
    for text, encoding in zip(
        texts, copy.encode_batch(texts, add_special_tokens=False), strict=True
    ):
        ids = encoder.ids(text)
        assert ids is not None
        assert ids.tolist() == encoding.ids, hex(ord(text[1]))


def changed(change: Callable[[dict[str, Any]], None]) -> Tokenizer:
    tree = json.loads(TOKENIZERS["gpt2"].to_str())
    change(tree)
    return Tokenizer.from_str(json.dumps(tree))


def _normalizer(tree: dict[str, Any]) -> None:
    tree["normalizer"] = {"type": "NFC"}


def _prefix_space(tree: dict[str, Any]) -> None:
    tree["pre_tokenizer"]["add_prefix_space"] = True


def _digits(tree: dict[str, Any]) -> None:
    digits = {"type": "Digits", "individual_digits": True}
    tree["pre_tokenizer"] = {
        "type": "Sequence", "pretokenizers": [digits, tree["pre_tokenizer"]]
    }  # fmt: skip


def _added_word(tree: dict[str, Any]) -> None:
    word = dict(tree["added_tokens"][0], id=1000, content="mill", special=False)
    tree["added_tokens"].append(word)


def _unreachable_token(tree: dict[str, Any]) -> None:
    tree["model"]["vocab"]["zqzqzq"] = 1000


def _order_of_merges(tree: dict[str, Any]) -> None:
    tree["model"]["merges"].reverse()


def _missing_byte(tree: dict[str, Any]) -> None:
    tree["model"]["vocab"].pop("\u0100")


@pytest.mark.parametrize(
    "change",
    [_normalizer, _prefix_space, _digits, _added_word, _unreachable_token, _order_of_merges, _missing_byte],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_tokenizers(change: Callable[[dict[str, Any]], None]) -> None:
    assert byte_pairs(changed(change)) is None


def test_an_encoder_uses_it_and_special_tokens_in_text_stay_text() -> None:
    encoder = Encoder(TOKENIZERS["llama3"], 0)
    text = "before <|endoftext|> behind"
    [encoded] = encoder.encode([text])
    assert encoded.ids.tolist() == reference(TOKENIZERS["llama3"], text)
    assert 0 not in encoded.ids.tolist()
    assert int(encoded.token_bytes.sum()) == len(text)
    assert not encoded.problem


def test_text_that_the_pattern_cannot_split_is_encoded_all_the_same() -> None:
    encoder = Encoder(TOKENIZERS["gpt2"], 0)
    text = " " * 1_200_000
    assert fast("gpt2").ids(text) is None
    [encoded] = encoder.encode([text])
    assert int(encoded.token_bytes.sum()) == len(text)


def test_ids_that_differ_are_noticed_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(self: BytePairs, text: str) -> np.ndarray[Any, Any]:
        return np.zeros(1, dtype=np.uint32)

    monkeypatch.setattr(BytePairs, "ids", wrong)
    encoder = Encoder(TOKENIZERS["qwen2"], 0)
    with caplog.at_level(logging.WARNING):
        results = list(encoder.encode(["one text", "another text"]))
    assert "tiktoken's ids differ" in caplog.text
    expected = [reference(TOKENIZERS["qwen2"], text) for text in ("one text", "another text")]
    assert [result.ids.tolist() for result in results] == expected


def test_the_pattern_of_gpt2_is_the_one_that_tokenizers_has() -> None:
    explicit, built_in = trained(GPT2_PATTERN), TOKENIZERS["gpt2"]
    text = TEXTS[0][:5000] + "  it's 12 o'clock\n\n  and\u3000so on…  "
    assert explicit.encode(text).ids == built_in.encode(text).ids
