"""A long document has the ids that it has whole, however it is cut for encoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from raymill.data.text import encoder as encoder_module
from raymill.data.text import windows
from raymill.data.text.encoder import Encoder
from tokenizer_families import EOS, FAMILIES, TEXTS, family

WORDS = [
    "the", " fox", "  ", "\n", "\n\n    ", " is", "n't", " 12345", "ab" * 9, ".", "é", "漢字", "🙂", "\t",
]  # fmt: skip
SIZE = 320


def encoder(tokenizer: Tokenizer) -> Encoder:
    return Encoder(tokenizer, tokenizer.token_to_id(EOS))


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "SLICE_CHARACTERS", SIZE)


@pytest.mark.parametrize("name", FAMILIES)
@settings(deadline=None, max_examples=2)
@given(st.lists(st.sampled_from(WORDS), min_size=200, max_size=300))
@example(["1"] * 400 + [" "] * 400 + ["x"])
def test_windows_give_the_ids_of_the_whole(name: str, words: list[str]) -> None:
    tokenizer = family(name)
    text = "".join(words)
    [found] = encoder(tokenizer).encode([text])
    assert found.ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    assert not len(found.ids) or found.token_bytes.sum() == len(text.encode())


@pytest.mark.parametrize("name", FAMILIES)
def test_no_more_is_encoded_at_once_than_a_window(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of ordinary text do agree: the whole isn't encoded after all."""
    monkeypatch.setattr(encoder_module, "SLICE_CHARACTERS", 600)
    monkeypatch.setattr(encoder_module, "COMPARED_CHARACTERS", 600)
    one, asked = encoder(family(name)), list[int]()
    tokens = one._tokens
    monkeypatch.setattr(one, "_tokens", lambda text: asked.append(len(text)) or tokens(text))
    text = "".join(TEXTS) * 4
    [found] = one.encode([text])
    measured = one._byte_table is not None and int(one._byte_table[found.ids].sum()) != len(text)
    assert max(asked[:-1] if measured else asked) <= 600
    assert sum(asked) - measured * len(text) < 1.4 * len(text)
    assert found.ids.tolist() == family(name).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", FAMILIES)
def test_no_space_comes_between_two_windows(name: str) -> None:
    tokenizer = family(name)
    text = "The quick brown fox isn't here.\n" * 40
    [found] = encoder(tokenizer).encode([text])
    whole = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(found.ids.tolist()) == tokenizer.decode(whole)


def test_short_documents_between_long_ones_keep_their_order() -> None:
    tokenizer = family("metaspace always")
    texts = ["the fox", "the fox " * 100, "", "two", "two is four. " * 100, "the end"]
    found = list(encoder(tokenizer).encode(texts))
    assert [one.ids.tolist() for one in found] == [
        tokenizer.encode(text, add_special_tokens=False).ids for text in texts
    ]


def test_windows_that_agree_nowhere_leave_it_to_the_whole() -> None:
    asked = []

    def encode(text: str) -> windows.TokenSpans:
        asked.append(len(text))
        ids = np.arange(len(text), dtype=np.uint32) + len(asked) * 1000
        places = np.arange(len(text), dtype=np.int64)
        return windows.TokenSpans(ids, np.stack([places, places + 1], axis=1))

    [found] = windows.in_windows("x" * 100, 40, 5, encode)
    assert asked == [40, 40, 80, 25, 100]
    assert len(found.ids) == 100
