"""Streamed text is the text decoded whole, for every family of tokenizers, whatever tokens are drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raymill.generate.decoding import decode_stream
from tokenizer_families import BOS, EOS, FAMILIES, PAD, UNK, family

NAMED = {"bos_token": BOS, "eos_token": EOS, "unk_token": UNK, "pad_token": PAD}


@cache
def tokenizer(name: str, clean_up: bool = False) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=family(name), clean_up_tokenization_spaces=clean_up, **NAMED
    )


def streamed(name: str, ids: Sequence[int], clean_up: bool = False) -> str:
    return "".join(decode_stream(tokenizer(name, clean_up), ids))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "text",
    ["Hello there, how are you today?", "a  b\n c", "漢 🙂 ok", "two plus two is four", " two"],
)
def test_words_keep_their_spaces(name: str, text: str) -> None:
    ids = tokenizer(name).encode(text, add_special_tokens=False)
    assert streamed(name, ids) == tokenizer(name).decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("clean_up", [False, True])
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_any_tokens_stream_as_they_decode(name: str, clean_up: bool, data: st.DataObject) -> None:
    """Special tokens, halves of characters and bytes that are none included."""
    one = tokenizer(name, clean_up)
    ids = data.draw(st.lists(st.integers(0, len(one) - 1), max_size=24))
    assert streamed(name, ids, clean_up) == one.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.sampled_from([" ", "▁", ".", "'", "n't", "x", "##s", "é", "🙂", "\n", " 's"])),
)
@example(["x", " ", "'", " ", "."])
def test_pieces_that_change_each_other(name: str, pieces: list[str]) -> None:
    one = tokenizer(name, True)
    ids = [index for piece in pieces for index in one.encode(piece, add_special_tokens=False)]
    assert streamed(name, ids, True) == one.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=10)
@given(data=st.data())
def test_what_follows_a_prompt_continues_it(name: str, data: st.DataObject) -> None:
    """A space that a tokenizer drops at the beginning of a text isn't dropped behind a prompt."""
    one = tokenizer(name)
    prompt = one.encode("What is two plus", add_special_tokens=False)
    ids = data.draw(st.lists(st.integers(0, len(one) - 1), max_size=12))
    whole = one.decode([*prompt, *ids], skip_special_tokens=True)
    told = one.decode(prompt, skip_special_tokens=True)
    assert told + "".join(decode_stream(one, ids, after=prompt)) == whole


def test_text_comes_as_soon_as_it_is_certain() -> None:
    text = "two plus two is four"
    for name in ("byte level", "llama 2", "unigram"):
        ids = tokenizer(name).encode(text, add_special_tokens=False)
        pieces = list(decode_stream(tokenizer(name), ids))
        assert len(pieces) > 3, (name, pieces)
        assert all(re.fullmatch(r" ?[a-z]*", piece) for piece in pieces), "no piece is held back"
