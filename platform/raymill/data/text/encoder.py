"""Encoder of documents: token ids, and the exact number of bytes behind each."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymill.data.text.engines import TextEngine, open_engine
from raymill.data.text.special_tokens import special_ids, unknown_id, without_control_tokens
from raymill.data.text.windows import TokenSpans, in_windows
from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

logger = logging.getLogger(__name__)

# Characters whose ids are compared with those of `tokenizers` before an engine's are trusted.
COMPARED_CHARACTERS = 1 << 16
# Characters that are encoded at once: `tokenizers` needs about 100 bytes for each token.
SLICE_CHARACTERS = 1 << 18
# Characters that two of these windows have in common.
OVERLAP_CHARACTERS = 1 << 12
BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Encoded:
    """Token ids of a document [n] and the UTF-8 bytes behind each [n], which add up to the text's.

    `problem` is the reason why the ids don't represent the text, if they don't. `ends`: the document ends
    here; a long one comes in several pieces.
    """

    ids: NDArray[np.uint32]
    token_bytes: NDArray[np.uint32]
    problem: str = ""
    ends: bool = True


class Encoder:
    """Encoder of documents; special tokens that a text spells are text and never control.

    The tokenizer is copied, not changed. No text may produce `end_of_text_id`, even if it is also
    the tokenizer's unknown token. Byte-level BPE is encoded by an engine, whose ids of the first texts
    are compared with those of `tokenizers`; anything else by `tokenizers`.

    Raises:
        DataError: `engine` names one that isn't installed or can't encode for this tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer, end_of_text_id: int, engine: str = "auto") -> None:
        self._tokenizer = without_control_tokens(tokenizer)
        self._byte_table = byte_table(tokenizer)
        self._asked = engine
        self._engine = open_engine(engine, tokenizer) if self._byte_table is not None else None
        if self._engine is None and engine not in ("auto", "huggingface"):
            raise DataError(
                f"tokenizer.engine={engine}: this tokenizer isn't byte-level BPE; set "
                "tokenizer.engine=auto."
            )
        self._compared = 0
        self._unknown_id = unknown_id(tokenizer)
        self._control = {index: token for token, index in special_ids(tokenizer).items()}
        # Text may become the unknown token, unless that also ends documents.
        if self._unknown_id is not None and self._unknown_id != end_of_text_id:
            self._control.pop(self._unknown_id, None)
        self._is_control = np.zeros(_size(tokenizer, self._control), dtype=np.bool_)
        self._is_control[list(self._control)] = True

    @property
    def engine(self) -> str:
        """Name of the library that encodes; `huggingface` where it is `tokenizers`."""
        return "huggingface" if self._engine is None else self._engine.name

    def encode(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """Encode documents one after the other, in batches of bounded size."""
        parts: list[Encoded] = []
        for piece in self.pieces(texts):
            parts.append(piece)
            if piece.ends:
                yield piece if len(parts) == 1 else _joined(parts)
                parts = []

    def pieces(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """Encode documents, long ones piece by piece, in memory that doesn't grow with their length.

        Pieces have the ids of the whole. Only where `tokenizers` itself encodes, a long document is one
        piece, since its end may show that it can't be encoded.
        """
        for batch in _batched(texts):
            if self._engine is not None and self._agrees(self._engine, batch):
                for text in batch:
                    yield from self._fast(self._engine, text)
            elif len(batch[0]) > SLICE_CHARACTERS:
                yield self._alone(batch[0])
            else:
                yield from self._together(batch)

    def _agrees(self, engine: TextEngine, texts: list[str]) -> bool:
        """Compare the first texts' ids with those of `tokenizers`, which wins if they differ."""
        for text in texts:
            if self._compared >= COMPARED_CHARACTERS:
                break
            sample = text[: COMPARED_CHARACTERS - self._compared]
            self._compared += len(sample)
            ids = engine.ids(sample)
            if ids is None or np.array_equal(ids, self._tokens(sample).ids):
                continue
            differ = f"{engine.name}'s ids differ from those of tokenizers"
            if self._asked == engine.name:
                raise DataError(
                    f"tokenizer.engine={engine.name}: {differ}; set tokenizer.engine=auto."
                )
            logger.warning("%s, which encodes all text instead", differ)
            self._engine = None
            return False
        return True

    def _fast(self, engine: TextEngine, text: str) -> Iterator[Encoded]:
        """Encode a document by the engine, one window after the other where it is long."""
        assert self._byte_table is not None, "an engine needs the bytes of each token"
        if len(text) <= SLICE_CHARACTERS:
            ids = engine.ids(text)
            yield self._alone(text) if ids is None else Encoded(ids, self._byte_table[ids])
            return
        before: TokenSpans | None = None
        windows = in_windows(text, SLICE_CHARACTERS, _overlap(), self._spans)
        for part in windows:
            if before is not None:
                yield Encoded(before.ids, self._byte_table[before.ids], ends=False)
            before = part
        assert before is not None, "the text isn't empty"
        yield Encoded(before.ids, self._byte_table[before.ids])

    def _spans(self, text: str) -> TokenSpans:
        """Encode a window by the engine."""
        ids = None if self._engine is None else self._engine.ids(text)
        if ids is None or self._byte_table is None:
            return self._tokens(text)
        content = np.frombuffer(text.encode("utf-8"), dtype=np.uint8)
        characters = np.cumsum((content & 0xC0) != 0x80)
        ends = characters[np.cumsum(self._byte_table[ids], dtype=np.int64) - 1]
        return TokenSpans(ids, np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1))

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
        """Encode a document by `tokenizers`, one window after the other where it is long."""
        try:
            if self._byte_table is not None:
                ids = np.concatenate([part.ids for part in self._windows(text)])
                token_bytes = self._byte_table[ids]
                if int(token_bytes.sum(dtype=np.int64)) == _bytes(text):
                    return Encoded(ids, token_bytes, self._forged(ids))
            return self._alone_by_offsets(text)
        except Exception as error:  # noqa: BLE001
            nothing = np.zeros(0, dtype=np.uint32)
            return Encoded(nothing, nothing, f"the tokenizer can't encode it ({error})")

    def _alone_by_offsets(self, text: str) -> Encoded:
        parts, end = list[Encoded](), 0
        for tokens in self._windows(text):
            if not len(tokens.ids):
                continue
            # What stands between the tokens of two parts counts for the later part.
            begin, end = end, max(end, int(tokens.offsets[:, 1].max()))
            offsets = np.clip(tokens.offsets - begin, 0, None)
            parts.append(self._by_offsets(text[begin:end], tokens.ids, offsets))
        if parts:
            parts[-1].token_bytes[-1] += _bytes(text[end:])
        rest = self._by_offsets(text[end:], *_NO_TOKENS)
        return _joined([*parts, rest])

    def _windows(self, text: str) -> Iterator[TokenSpans]:
        return in_windows(text, SLICE_CHARACTERS, _overlap(), self._tokens)

    def _tokens(self, text: str) -> TokenSpans:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return TokenSpans(np.array(encoding.ids, dtype=np.uint32), _offsets(encoding))

    def _measured(
        self, text: str, ids: NDArray[np.uint32], offsets: NDArray[np.int64] | None
    ) -> Encoded:
        if self._byte_table is not None:
            token_bytes = self._byte_table[ids]
            # If the counts add up, no character was dropped or replaced.
            if int(token_bytes.sum(dtype=np.int64)) == _bytes(text):
                return Encoded(ids, token_bytes, self._forged(ids))
        # A normalizer or an unknown token changed the text; character offsets still give the bytes.
        offsets = self._tokens(text).offsets if offsets is None else offsets
        return self._by_offsets(text, ids, offsets)

    def _by_offsets(
        self, text: str, ids: NDArray[np.uint32], offsets: NDArray[np.int64]
    ) -> Encoded:
        problem = self._forged(ids)
        if self._unknown_id is None:
            problem = problem or _lost(text, offsets)
        return Encoded(ids, bytes_by_offsets(text, offsets, _bytes(text)), problem)

    def _forged(self, ids: NDArray[np.uint32]) -> str:
        if not self._is_control[ids].any():
            return ""
        token = self._control[int(ids[self._is_control[ids]].min())]
        return f"the tokenizer makes its special token {token!r} of ordinary text in it"


_NO_TOKENS = np.zeros(0, dtype=np.uint32), np.zeros((0, 2), dtype=np.int64)


def _overlap() -> int:
    return min(SLICE_CHARACTERS // 8, OVERLAP_CHARACTERS)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def _size(tokenizer: Tokenizer, control: Mapping[int, str]) -> int:
    """Return the number of ids."""
    return 1 + max(*tokenizer.get_vocab(with_added_tokens=True).values(), *control, 0)


def _joined(pieces: Sequence[Encoded]) -> Encoded:
    """Join the pieces of a document."""
    return Encoded(
        np.concatenate([piece.ids for piece in pieces]),
        np.concatenate([piece.token_bytes for piece in pieces]),
        next((piece.problem for piece in pieces if piece.problem), ""),
    )


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
