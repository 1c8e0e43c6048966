"""Encode the segments of renderings as token ids; only the template's special tokens become control tokens.

If a tokenizer is concatenative (byte-level, nothing added before a text), a segment is cut at the special
tokens that the template wrote, and the text between them is encoded on its own. The ids of a turn then don't
depend on its neighbors: a model meets the same boundary when it answers. For other tokenizers, a whole
rendering is encoded at once, and tokens are assigned to segments by their offsets; a token that belongs to
two can't be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raymill.data.messages.guard import BREAK, SpecialTokenGuard
from raymill.data.messages.problems import Problem
from raymill.data.messages.template import RenderedSegment
from raymill.data.text.encoder import Encoder, byte_table, bytes_by_offsets
from raymill.data.text.special_tokens import unknown_id
from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_PROBES = ("x", " x", "x ", "\n", "\n\nx", "  ", "é", "(x y)", "\t", "漢 🙂")


@dataclass(frozen=True)
class EncodedSegment:
    """A segment's ids [n], and the number of UTF-8 bytes of each token's text [n], 0 for special tokens."""

    ids: NDArray[np.uint32]
    token_bytes: NDArray[np.uint32]


class SegmentEncoder:
    """Encoder for the segments of many renderings at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import Tokenizer

        self.special_ids = special_ids(tokenizer)
        self.guard = SpecialTokenGuard(tuple(self.special_ids))
        text = tokenizer.to_str()
        # These are copies, since `encode_special_tokens` is a switch of the tokenizer that others use too.
        self._control, self._plain = Tokenizer.from_str(text), Tokenizer.from_str(text)
        for copy in (self._control, self._plain):
            copy.no_padding()
            copy.no_truncation()
        self._control.encode_special_tokens = False
        self._plain.encode_special_tokens = True
        size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self._is_special = np.zeros(size + 1, dtype=np.bool_)
        self._is_special[list(self.special_ids.values())] = True
        self._unknown_id = unknown_id(tokenizer)
        self._text = Encoder(self._plain, end_of_text_id=size)
        zero = np.zeros(1, dtype=np.uint32)
        self._special = {
            token: EncodedSegment(np.array([index], dtype=np.uint32), zero)
            for token, index in self.special_ids.items()
        }
        self.concatenative = self._is_concatenative()

    def encode(
        self, renderings: Sequence[Sequence[RenderedSegment]]
    ) -> list[list[EncodedSegment] | Problem]:
        """Return the encoded segments of every rendering, or why it can't be encoded."""
        if self.concatenative:
            return self._encode_apart(renderings)
        return self._encode_whole(renderings)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with special tokens spelled out."""
        return str(self._plain.decode(list(ids), skip_special_tokens=False))

    def is_special(self, ids: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Return for each id [n] whether it is a control token."""
        return self._is_special[ids]

    def within_thought(
        self, segment: RenderedSegment, encoded: EncodedSegment
    ) -> NDArray[np.bool_]:
        """Return for each token [n] of a segment whether it holds a part of its `thought`."""
        start, stop = (self._text_bytes(segment.text[:end]) for end in segment.thought)
        stops = np.cumsum(encoded.token_bytes, dtype=np.int64)
        starts = stops - encoded.token_bytes
        # Tokens without bytes of their own, such as a character's later parts, count as inside too.
        return (starts < stop) & (stops > start)

    def _text_bytes(self, text: str) -> int:
        ordinary = "".join(self.guard.split(text)[::2])
        return len(ordinary.replace(BREAK, "").encode())

    def _encode_apart(
        self, renderings: Sequence[Sequence[RenderedSegment]]
    ) -> list[list[EncodedSegment] | Problem]:
        cut = [[self.guard.split(segment.text) for segment in parts] for parts in renderings]
        # Templates repeat their own text in every turn, so each distinct text is encoded once.
        ordinary = dict.fromkeys(
            text for parts in cut for texts in parts for text in texts[::2] if text
        )
        encoded = self._text.encode([text.replace(BREAK, "") for text in ordinary])
        known: dict[str, EncodedSegment] = {}
        # Some texts can't be encoded as ordinary text: a single letter that is a control token, for instance.
        forged: set[str] = set()
        for text, tokens in zip(ordinary, encoded, strict=True):
            known[text] = EncodedSegment(tokens.ids, tokens.token_bytes)
            if tokens.problem:
                forged.add(text)
        results: list[list[EncodedSegment] | Problem] = []
        for parts in cut:
            if forged and any(text in forged for texts in parts for text in texts[::2]):
                results.append(_forged())
            else:
                results.append([_joined(self._lookup(texts, known)) for texts in parts])
        return results

    def _lookup(
        self, texts: Sequence[str], known: dict[str, EncodedSegment]
    ) -> list[EncodedSegment]:
        return [
            self._special[text] if number % 2 else known[text]
            for number, text in enumerate(texts)
            if text
        ]

    def _encode_whole(
        self, renderings: Sequence[Sequence[RenderedSegment]]
    ) -> list[list[EncodedSegment] | Problem]:
        texts = ["".join(segment.text for segment in parts) for parts in renderings]
        encodings = self._control.encode_batch(texts, add_special_tokens=False)
        return [
            self._by_offsets(text, encoding, parts)
            for text, encoding, parts in zip(texts, encodings, renderings, strict=True)
        ]

    def _by_offsets(
        self, text: str, encoding: Encoding, parts: Sequence[RenderedSegment]
    ) -> list[EncodedSegment] | Problem:
        ids = np.array(encoding.ids, dtype=np.uint32)
        # The special tokens in the text must be exactly those that the template wrote.
        special = self.is_special(ids)
        written = [self.special_ids[token] for token in self.guard.split(text)[1::2]]
        # Ordinary text may also become the unknown token, so its count tells nothing.
        if self._unknown_id is not None:
            special &= ids != self._unknown_id
        expected = [index for index in written if index != self._unknown_id]
        if BREAK in text or len(expected) != int(special.sum()):
            return _forged()
        token_bytes = bytes_by_offsets(text, encoding.offsets, len(text.encode("utf-8")))
        token_bytes[special] = 0
        ends = np.cumsum([len(segment.text) for segment in parts])
        starts, stops = self._extents(text, encoding, special)
        first = np.searchsorted(ends, starts, side="right")
        last = np.searchsorted(ends, np.maximum(stops - 1, starts), side="right")
        straddling = np.flatnonzero(first != last)
        # A token across two segments that are both learned, or both not, is harmless.
        for index in straddling:
            kinds = {parts[number].learned for number in range(first[index], last[index] + 1)}
            if len(kinds) > 1:
                around = text[max(0, starts[index] - 20) : stops[index] + 20]
                return Problem(
                    "boundary",
                    f"the token {encoding.tokens[index]!r} is partly inside and partly outside "
                    f"the assistant's text, around {around!r}",
                )
        # Tokens behind the last character, such as an added end of text, belong to the last segment.
        first = np.minimum(first, len(parts) - 1)
        return [
            EncodedSegment(ids[first == number], token_bytes[first == number])
            for number in range(len(parts))
        ]

    def _extents(
        self, text: str, encoding: Encoding, special: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where each token starts and stops [n]; special tokens without the spaces that they absorb."""
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        starts, stops = offsets[:, 0].copy(), offsets[:, 1].copy()
        for index in np.flatnonzero(special):
            inside = text[starts[index] : stops[index]]
            starts[index] += len(inside) - len(inside.lstrip())
            stops[index] = starts[index] + len(inside.strip())
        return starts, stops

    def _is_concatenative(self) -> bool:
        """Try out whether texts encoded separately give the tokens of the whole text."""
        if byte_table(self._plain) is None:
            return False
        added = self._control.get_added_tokens_decoder().values()
        # Such tokens absorb spaces of their neighbors, so texts can't be encoded separately.
        if any(t.special and (t.lstrip or t.rstrip or t.single_word) for t in added):
            return False
        for text in _PROBES:
            # Byte-level tokens have one character per byte: more characters mean that a space was put in front.
            tokens = self._plain.encode(text, add_special_tokens=False).tokens
            if sum(map(len, tokens)) != len(text.encode("utf-8")):
                return False
        token = next(iter(self.special_ids), None)
        for before in _PROBES if token else ():
            for after in _PROBES:
                whole = self._control.encode(f"{before}{token}{after}", add_special_tokens=False)
                parts = [self._plain.encode(t, add_special_tokens=False) for t in (before, after)]
                if whole.ids != [*parts[0].ids, self.special_ids[str(token)], *parts[1].ids]:
                    return False
        return True


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return a tokenizer's special tokens and their ids.

    Raises:
        DataError: it has none, so nothing could end a turn.
    """
    special = {
        token.content: index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    if not special:
        raise DataError("The tokenizer has no special tokens, so nothing could end a turn.")
    return special


def _joined(parts: Sequence[EncodedSegment]) -> EncodedSegment:
    if len(parts) == 1:
        return parts[0]
    return EncodedSegment(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.token_bytes for part in parts]),
    )


def _forged() -> Problem:
    return Problem(
        "special_text",
        "the text spells a special token, which this tokenizer can't encode as ordinary text",
    )
