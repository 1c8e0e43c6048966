"""Encoder of documents: token ids, and the exact number of bytes behind each."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymill.data.text.byte_pairs import BytePairs, byte_pairs
from raymill.data.text.special_tokens import special_ids, unknown_id, without_control_tokens
from raymill.data.text.windows import TokenSpans, in_windows

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

logger = logging.getLogger(__name__)

# Characters whose ids are compared with those of `tokenizers` before tiktoken's are trusted.
COMPARED_CHARACTERS = 1 << 16
# Characters that are encoded at once: `tokenizers` needs about 100 bytes for each token.
SLICE_CHARACTERS = 1 << 18
BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Encoded:
    """Token ids of a document [n] and the UTF-8 bytes behind each [n], which add up to the text's.

    `problem` is the reason why the ids don't represent the text, if they don't.
    """

    ids: NDArray[np.uint32]
    token_bytes: NDArray[np.uint32]
    problem: str = ""


class Encoder:
    """Encoder of documents; special tokens that a text spells are text and never control.

    The tokenizer is copied, not changed. No text may produce `end_of_text_id`, even if it is also
    the tokenizer's unknown token. Plain byte-level BPE is encoded by tiktoken, whose ids of the
    first texts are compared with those of `tokenizers`; anything else by `tokenizers`.
    """

    def __init__(self, tokenizer: Tokenizer, end_of_text_id: int) -> None:
        self._tokenizer = without_control_tokens(tokenizer)
        self._byte_table = byte_table(tokenizer)
        self._fast = byte_pairs(tokenizer) if self._byte_table is not None else None
        self._compared = 0
        self._unknown_id = unknown_id(tokenizer)
        self._control = {index: token for token, index in special_ids(tokenizer).items()}
        # Text may become the unknown token, unless that also ends documents.
        if self._unknown_id is not None and self._unknown_id != end_of_text_id:
            self._control.pop(self._unknown_id, None)

    def encode(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """Encode documents one after the other, in batches of bounded size.

        Memory stays bounded for a long document, too: `tokenizers` encodes it in windows, with the
        ids of the whole.
        """
        for batch in _batched(texts):
            if self._fast is not None and self._agrees(batch):
                yield from (self._one(self._fast, text) for text in batch)
                continue
            if len(batch[0]) > SLICE_CHARACTERS:
                yield self._alone(batch[0])
            else:
                yield from self._together(batch)

    def _agrees(self, texts: list[str]) -> bool:
        """Compare the first texts' ids with those of `tokenizers`, which wins if they differ."""
        for text in texts:
            if self._compared >= COMPARED_CHARACTERS:
                break
            sample = text[: COMPARED_CHARACTERS - self._compared]
            self._compared += len(sample)
            assert self._fast is not None, "the caller has asked"
            ids = self._fast.ids(sample)
            if ids is not None and not np.array_equal(ids, self._tokens(sample).ids):
                logger.warning(
                    "tiktoken's ids differ from those of tokenizers, which encodes all text instead"
                )
                self._fast = None
                return False
        return True

    def _one(self, fast: BytePairs, text: str) -> Encoded:
        ids = fast.ids(text)
        if ids is None:
            return self._alone(text)
        return self._measured(text, ids, None)

    def _together(self, texts: list[str]) -> Iterator[Encoded]:
        """Encode documents in one call; one by one if that fails."""
        # The fast call leaves the offsets out, which byte-level tokenizers hardly ever need.
        model = self._tokenizer
        call = model.encode_batch if self._byte_table is None else model.encode_batch_fast
        try:
            encodings = call(texts, add_special_tokens=False)
        # `tokenizers` raises nothing narrower, for example for a character that Unigram lacks.
        except Exception:  # noqa: BLE001
            yield from map(self._alone, texts)
            return
        for text, encoding in zip(texts, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.uint32)
            offsets = _offsets(encoding) if self._byte_table is None else None
            yield self._measured(text, ids, offsets)

    def _alone(self, text: str) -> Encoded:
        try:
            tokens = in_windows(text, SLICE_CHARACTERS, self._tokens)
        except Exception as error:  # noqa: BLE001
            nothing = np.zeros(0, dtype=np.uint32)
            return Encoded(nothing, nothing, f"the tokenizer can't encode it ({error})")
        return self._measured(text, tokens.ids, tokens.offsets)

    def _tokens(self, text: str) -> TokenSpans:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return TokenSpans(np.array(encoding.ids, dtype=np.uint32), _offsets(encoding))

    def _measured(
        self, text: str, ids: NDArray[np.uint32], offsets: NDArray[np.int64] | None
    ) -> Encoded:
        problem = self._forged(ids)
        total = len(text.encode("utf-8"))
        if self._byte_table is not None:
            token_bytes = self._byte_table[ids]
            # If the counts add up, no character was dropped or replaced.
            if int(token_bytes.sum(dtype=np.int64)) == total:
                return Encoded(ids, token_bytes, problem)
        # A normalizer or an unknown token changed the text; character offsets still give the bytes.
        offsets = self._tokens(text).offsets if offsets is None else offsets
        if self._unknown_id is None:
            problem = problem or _lost(text, offsets)
        return Encoded(ids, bytes_by_offsets(text, offsets, total), problem)

    def _forged(self, ids: NDArray[np.uint32]) -> str:
        forged = self._control.keys() & set(np.unique(ids).tolist())
        if not forged:
            return ""
        token = self._control[min(forged)]
        return f"the tokenizer makes its special token {token!r} of ordinary text in it"


def _batched(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield lists of about BATCH_CHARACTERS; a text longer than SLICE_CHARACTERS stands alone."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (size >= BATCH_CHARACTERS or len(text) > SLICE_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
        if len(text) > SLICE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def byte_table(tokenizer: Tokenizer) -> NDArray[np.uint32] | None:
    """Return the bytes of text by id where the vocabulary is byte-level (one character per byte),
    else None.

    Special tokens count as their spelling, but never come from text.
    """
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    kinds = [decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", ()))]
    if "ByteLevel" not in kinds:
        return None
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    table = np.zeros(max(vocab.values()) + 1, dtype=np.uint32)
    for token, index in vocab.items():
        table[index] = len(token)
    return table


def _offsets(encoding: Encoding) -> NDArray[np.int64]:
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def bytes_by_offsets(text: str, offsets: ArrayLike, total: int) -> NDArray[np.uint32]:
    """Return the bytes behind each token, from its end offset ([n, 2] as `tokenizers` returns
    them).

    Text between tokens counts for the later one. The ends telescope, so the sum is exact whatever a
    normalizer dropped; the last token takes the rest.
    """
    ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    if not len(ends):
        return np.zeros(0, dtype=np.uint32)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    byte_at = np.concatenate([[0], np.cumsum(widths)])
    # Offsets may go back where characters were reordered.
    byte_ends = byte_at[np.maximum.accumulate(ends)]
    byte_ends[-1] = total
    return np.diff(byte_ends, prepend=0).astype(np.uint32)


def _lost(text: str, offsets: NDArray[np.int64]) -> str:
    """Report the first letter, number or sign without a token, where there is no unknown token."""
    covered = np.zeros(len(text) + 1, dtype=np.int64)
    np.add.at(covered, offsets[:, 0], 1)
    np.add.at(covered, offsets[:, 1], -1)
    for index in np.flatnonzero(np.cumsum(covered[:-1]) == 0):
        if unicodedata.category(text[index])[0] in "LNPS":
            return (
                f"the tokenizer has no token for {text[index]!r}, nor one for what it doesn't know"
            )
    return ""
