"""Text and bytes of single tokens, as log-probabilities show them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from raymill.data.text.byte_pairs import byte_alphabet
from raymill.generate.decoding import BYTE_TOKEN

if TYPE_CHECKING:
    from tokenizers import Tokenizer


# Named here, since `TokenTexts` has a method of the name `bytes`.
_Found = tuple[str, bytes]


class TokenTexts:
    """Text and bytes of every token of a tokenizer; built once for a model.

    A token is shown as it reads behind other text, with its space. Special tokens are spelled out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_level = "ByteLevel" in _decoder_kinds(tokenizer)
        self._added = tokenizer.get_added_tokens_decoder()
        self._before = tokenizer.encode("x", add_special_tokens=False).ids
        self._text_before = tokenizer.decode(self._before)
        self._known: dict[int, _Found] = {}

    def text(self, token: int) -> str:
        """Return a token's text; half a character reads as U+FFFD, an id without a token as ""."""
        return self._found(token)[0]

    def bytes(self, token: int) -> bytes:
        """Return a token's part of the UTF-8 bytes of a text."""
        return self._found(token)[1]

    def _found(self, token: int) -> _Found:
        if token not in self._known:
            self._known[token] = self._read(token)
        return self._known[token]

    def _read(self, token: int) -> _Found:
        name = self._tokenizer.id_to_token(token)
        if name is None:
            return "", b""
        if token in self._added:
            return name, name.encode()
        if BYTE_TOKEN.fullmatch(name):
            raw = bytes([int(name[3:5], 16)])
        elif self._byte_level:
            table = byte_alphabet()
            raw = bytes(table[character] for character in name if character in table)
        else:
            whole = self._tokenizer.decode([*self._before, token])
            return (text := whole[len(self._text_before) :]), text.encode()
        return raw.decode(errors="replace"), raw


def _decoder_kinds(tokenizer: Tokenizer) -> set[str]:
    """Return the types of a tokenizer's decoder and of its parts."""
    if tokenizer.decoder is None:
        return set()
    tree: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return {tree["type"], *(part["type"] for part in tree.get("decoders", ()))}
