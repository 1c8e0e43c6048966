"""Streamed text is the text decoded whole, for every family of tokenizers, whatever tokens are drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raymill.generate.decoding import (
    AnswerText,
    IncrementalDecoder,
    StopStrings,
    decode_stream,
)
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


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("clean_up", [False, True])
def test_long_texts_stream_as_they_decode(name: str, clean_up: bool) -> None:
    """Random tokens hold half characters for long, so that the decoder has to cut its window."""
    one = tokenizer(name, clean_up)
    numbers = Random(0)
    half = [i for i in range(len(one)) if "\ufffd" in one.decode([i])] or list(range(len(one)))
    ids = [numbers.choice(half) for _ in range(400)]
    ids += [numbers.randrange(len(one)) for _ in range(200)]
    assert streamed(name, ids, clean_up) == one.decode(ids, skip_special_tokens=True)


class Counting:
    """Tokenizer that counts the tokens that it decodes."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.decoded = 0

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        self.decoded += len(ids)
        return str(self._inner.decode(ids, skip_special_tokens=skip_special_tokens))

    def id_to_token(self, index: int) -> str | None:
        found: str | None = self._inner.id_to_token(index)
        return found


@pytest.mark.parametrize("name", FAMILIES)
def test_the_cost_of_a_token_is_bounded(name: str) -> None:
    inner = family(name)
    prompt = inner.encode("two plus two is four " * 200, add_special_tokens=False).ids
    numbers = Random(0)
    for kind in ("words", "random"):
        size = inner.get_vocab_size()
        ids = prompt if kind == "words" else [numbers.randrange(size) for _ in range(1000)]
        counting = Counting(inner)
        decoder = IncrementalDecoder(counting, prompt)
        for token in ids:
            decoder.push(token)
        assert counting.decoded < 20 * len(ids), kind


@pytest.mark.parametrize("name", ["byte level", "llama 2", "unigram"])
def test_shown_tokens_are_spelled_where_they_stand(name: str) -> None:
    one = family(name)
    two = one.encode("two", add_special_tokens=False).ids
    special = one.token_to_id(PAD)
    decoder = IncrementalDecoder(one, shown=[special])
    ids = [*two, special, *two, one.token_to_id(BOS), special]
    pieces = [decoder.push(token) for token in ids] + [decoder.finish()]
    text = "".join(pieces).replace(" ", "")
    assert text == f"two{PAD}two{PAD}"


def test_ids_without_a_token_have_no_text() -> None:
    one = family("byte level")
    assert "".join(decode_stream(one, [9999, *one.encode("two").ids, 10**6])) == "two"


def cut_at_the_first(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text.endswith(stop, 0, end)]:
            matched = max(found, key=len)
            return text[: end - len(matched)], matched
    return text, None


LETTERS = st.text("ab\n", max_size=30)


@settings(deadline=None, max_examples=200)
@given(LETTERS, st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3), st.data())
def test_text_ends_at_the_first_stop_string_however_it_is_cut(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    stopper = StopStrings(stops)
    given_out, at = "", 0
    while at < len(text):
        size = data.draw(st.integers(1, 6))
        given_out += stopper.push(text[at : at + size])
        at += size
        whole, matched = cut_at_the_first(text[:at], stops)
        certain = next(
            len(whole) - n
            for n in range(len(whole), -1, -1)
            if n == 0 or any(stop.startswith(whole[len(whole) - n :]) for stop in stops)
        )
        assert given_out == (whole if matched else whole[:certain]), "as much as is certain"
        if matched:
            break
    expected, matched = cut_at_the_first(text, stops)
    assert given_out + stopper.finish() == expected
    assert stopper.matched == matched
    assert stopper.rest == (text[len(expected) + len(matched) : at] if matched else "")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopStrings(["a", ""])


@pytest.mark.parametrize("name", ["byte level", "llama 2", "words"])
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_an_answer_ends_at_a_stop_string_and_knows_where_its_tokens_begin(
    name: str, data: st.DataObject
) -> None:
    one = family(name)
    ids = data.draw(st.lists(st.integers(0, one.get_vocab_size() - 1), max_size=24))
    ids += one.encode("two plus two is four", add_special_tokens=False).ids
    stops = data.draw(st.lists(st.sampled_from(["plus", " is", "s t", "e", "\ufffd"]), max_size=2))
    prompt = one.encode("What is", add_special_tokens=False).ids
    answer = AnswerText(one, after=prompt, stops=stops)
    pieces = [answer.push(token) for token in ids] + [answer.finish()]
    whole = one.decode([*prompt, *ids])[len(one.decode(prompt)) :]
    expected, matched = cut_at_the_first(whole, stops)
    assert "".join(pieces) == expected
    assert (answer.stopped, answer.matched) == (matched is not None, matched)
    assert answer.offsets == sorted(answer.offsets)
    if not matched:
        assert len(answer.offsets) == len(ids)
    begun = answer.offsets[: answer.tokens_begun]
    assert all(offset < len(expected) for offset in begun)
    assert all(offset >= len(expected) for offset in answer.offsets[answer.tokens_begun :])
