"""Tokens are shown as they read within a text, and their bytes add up to it."""

from __future__ import annotations

import pytest
from transformers.convert_slow_tokenizer import bytes_to_unicode

from raymill.data.text.byte_pairs import byte_alphabet
from raymill.generate.token_text import TokenTexts
from tokenizer_families import EOS, family


def test_the_byte_alphabet_is_gpt2s() -> None:
    assert {byte: character for character, byte in byte_alphabet().items()} == bytes_to_unicode()


@pytest.mark.parametrize("name", ["byte level", "llama 2", "unigram with bytes"])
@pytest.mark.parametrize("text", [" two plus two", " The é 漢 🙂."])
def test_the_bytes_of_tokens_add_up_to_the_text(name: str, text: str) -> None:
    tokenizer = family(name)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    texts = TokenTexts(tokenizer)
    joined = b"".join(map(texts.bytes, ids)).decode()
    assert joined.strip() == tokenizer.decode(ids).strip()
    for token in ids:
        assert texts.text(token) == texts.bytes(token).decode(errors="replace")


def test_words_have_their_space_and_special_tokens_their_name() -> None:
    for name in ("byte level", "llama 2", "unigram"):
        tokenizer = family(name)
        texts = TokenTexts(tokenizer)
        [*_, last] = tokenizer.encode("is two", add_special_tokens=False).ids
        assert texts.text(last) in (" two", "two", "o", "wo")
        assert texts.text(tokenizer.token_to_id(EOS)) == EOS
        assert texts.bytes(tokenizer.token_to_id(EOS)) == EOS.encode()
        assert texts.text(10**6) == ""
