"""Engines that encode ordinary text faster than `tokenizers`, with equal ids."""

from __future__ import annotations

import importlib
import importlib.util
import json
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from raymill.data.text.byte_pairs import byte_pairs
from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EngineName = Literal["auto", "tiktoken", "gigatoken", "huggingface"]


class TextEngine(Protocol):
    """Encoder of ordinary text; no text produces a special token."""

    @property
    def name(self) -> str:
        """Name of the library."""
        ...

    def ids(self, text: str) -> NDArray[np.uint32] | None:
        """Return the ids of a text [n]; None where the library can't encode it."""
        ...


class _Encodes(Protocol):
    """Tokenizer of gigatoken, as far as it is used here."""

    def encode(self, text: str) -> NDArray[np.uint32]: ...


class Gigatoken:
    """Encoder through gigatoken, which `tokenizer.engine=gigatoken` asks for."""

    name = "gigatoken"

    def __init__(self, tokenizer: _Encodes) -> None:
        self._tokenizer = tokenizer

    def ids(self, text: str) -> NDArray[np.uint32] | None:
        """Return the ids of a text [n]."""
        return np.asarray(self._tokenizer.encode(text), dtype=np.uint32)


def open_engine(name: str, tokenizer: Tokenizer) -> TextEngine | None:
    """Return the engine for a byte-level tokenizer; None where `tokenizers` itself encodes.

    Raises:
        DataError: the engine that was asked for isn't installed, or can't encode for this tokenizer.
    """
    if name == "huggingface":
        return None
    if name == "gigatoken":
        return _gigatoken(tokenizer)
    found = byte_pairs(tokenizer)
    if found is None and name == "tiktoken":
        raise DataError(
            "tokenizer.engine=tiktoken: this tokenizer isn't plain byte-level BPE, whose ids tiktoken gives; "
            "set tokenizer.engine=auto."
        )
    return found


def check_engine(name: str) -> None:
    """Raise DataError if the package of an engine isn't installed."""
    if name == "gigatoken" and importlib.util.find_spec("gigatoken") is None:
        raise DataError(
            "tokenizer.engine=gigatoken: the package gigatoken isn't installed: pip install gigatoken (on "
            "every node), or set tokenizer.engine=auto."
        )


def _gigatoken(tokenizer: Tokenizer) -> Gigatoken:
    check_engine("gigatoken")
    library = importlib.import_module("gigatoken")
    tree = json.loads(tokenizer.to_str())
    # What spells a special token is text, so the engine must not know these tokens.
    special = {token["content"] for token in tree["added_tokens"] if token["special"]}
    tree["added_tokens"] = [t for t in tree["added_tokens"] if not t["special"]]
    vocab = tree["model"].get("vocab")
    if isinstance(vocab, dict):
        tree["model"]["vocab"] = {token: n for token, n in vocab.items() if token not in special}
    try:
        return Gigatoken(library.Tokenizer.from_json(json.dumps(tree)))
    # The library names no class for a tokenizer that it doesn't know.
    except Exception as error:
        raise DataError(
            f"tokenizer.engine=gigatoken: it can't load this tokenizer ({error}); set "
            "tokenizer.engine=auto."
        ) from error
