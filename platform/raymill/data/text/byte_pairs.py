"""Byte-level BPE through tiktoken, several times as fast as `tokenizers`, where both give equal ids.

`tokenizers` merges the pairs that its file lists, in that order; tiktoken merges any two neighbors
whose bytes are a token, lowest id first. The two agree if every token of several bytes has a merge
and the ids ascend with the merges, as those of a trained vocabulary do. What isn't plain (a
normalizer, other splitting, added words, byte fallback) is left to `tokenizers`.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raymill.durable import JsonObject

if TYPE_CHECKING:
    from tiktoken import Encoding
    from tokenizers import Tokenizer

# Pattern by which GPT-2 splits text, which `tokenizers` has built in (Radford et al. 2019).
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class BytePairs:
    """Encoder of ordinary text; no text produces a special token."""

    name = "tiktoken"

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding

    def ids(self, text: str) -> NDArray[np.uint32] | None:
        """Return the ids of a text [n], in memory of a few bytes per token.

        None where the pattern can't split the text, such as a million spaces in a row.
        """
        try:
            ids = self._encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        # The library's only error for text, by its name: a panic isn't an Exception.
        except BaseException as error:
            if type(error).__name__ == "PanicException" or isinstance(error, ValueError):
                return None
            raise
        return np.asarray(ids, dtype=np.uint32)


def byte_pairs(tokenizer: Tokenizer) -> BytePairs | None:
    """Return tiktoken's form of a tokenizer, or None if it isn't plain byte-level BPE."""
    import tiktoken
    from tokenizers.pre_tokenizers import ByteLevel

    tree = json.loads(tokenizer.to_str())
    pattern = _pattern(tree)
    model = tree["model"]
    if pattern is None or not _is_plain(tree):
        return None
    added = {token["content"] for token in tree["added_tokens"]}
    vocab = {token: index for token, index in model["vocab"].items() if token not in added}
    values = byte_alphabet()
    if set(ByteLevel.alphabet()) != set(values) or not vocab.keys() >= values.keys():
        return None
    if not _merged_in_order(model["merges"], vocab):
        return None
    ranks = {bytes(values[letter] for letter in token): index for token, index in vocab.items()}
    try:
        return BytePairs(
            tiktoken.Encoding("raymill", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        )
    # The pattern's syntax may be one that only the other library knows.
    except ValueError:
        return None


def _is_plain(tree: JsonObject) -> bool:
    """Tell whether nothing but merges of bytes shapes the ids of ordinary text."""
    model = tree["model"]
    return (
        tree["normalizer"] is None
        and model["type"] == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and not model.get("byte_fallback")
        # An added word is looked for in the text before it is split.
        and all(token["special"] for token in tree["added_tokens"])
    )


def _pattern(tree: JsonObject) -> str | None:
    """Return the expression that splits text into words, or None if it is split in another way."""
    steps = tree["pre_tokenizer"] or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    *before, last = steps
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    if not before:
        return GPT2_PATTERN if last["use_regex"] else None
    [split, *others] = before
    if others or last["use_regex"] or split.get("type") != "Split":
        return None
    if split["behavior"] != "Isolated" or split["invert"]:
        return None
    pattern: str | None = split["pattern"].get("Regex")
    return pattern


@cache
def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of byte-level tokens stands for (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return table


def _merged_in_order(merges: list[list[str]], vocab: dict[str, int]) -> bool:
    """Tell whether all tokens of several bytes come from merges, in the order of their ids."""
    made = [left + right for left, right in merges]
    if set(made) != {token for token in vocab if len(token) > 1}:
        return False
    ids = np.array([vocab[token] for token in made], dtype=np.int64)
    return bool((np.diff(ids) >= 0).all())
