"""Segments of renderings to token ids, each segment on its own; control tokens come from the
template alone.

Where a tokenizer is concatenative (byte-level, nothing added before a text), a segment is cut at
the special tokens that the template wrote, and what lies between is encoded as ordinary text, so
that the ids of a turn don't depend on what stands beside it: a model meets the same boundary when
it answers. For other tokenizers, a whole rendering is encoded at once, and tokens are given to
segments by their offsets; a token that belongs to two can't be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from raymill.data.messages.guard import BREAK, Guard
from raymill.data.messages.problems import Problem
from raymill.data.messages.template import Segment
from raymill.data.text.special_tokens import unknown_id
from raymill.data.text.tokenizer import Encoder, _byte_table, _bytes_by_offsets
from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

_PROBES = ("x", " x", "x ", "\n", "\n\nx", "  ", "é", "(x y)", "\t", "漢 🙂")


@dataclass(frozen=True)
class Piece:
    """A segment's ids [n] and the UTF-8 bytes of text behind each [n]; special tokens have 0."""

    ids: NDArray[np.uint32]
    token_bytes: NDArray[np.uint32]


class SegmentEncoder:
    """Encodes the segments of many renderings at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from tokenizers import Tokenizer

        self.special_ids = special_ids(tokenizer)
        self.guard = Guard(tuple(self.special_ids))
        text = tokenizer.to_str()
        # Copies: `encode_special_tokens` is a switch on the tokenizer, which others use too.
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
            token: Piece(np.array([index], dtype=np.uint32), zero)
            for token, index in self.special_ids.items()
        }
        self.concatenative = self._is_concatenative()

    def encode(self, renderings: Sequence[Sequence[Segment]]) -> list[list[Piece] | Problem]:
        """The pieces of every rendering, one for each segment."""
        if self.concatenative:
            return self._encode_apart(renderings)
        return self._encode_whole(renderings)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens spelled."""
        return str(self._plain.decode(list(ids), skip_special_tokens=False))

    def is_special(self, ids: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Which ids [n] are control tokens."""
        return self._is_special[ids]

    def within(self, segment: Segment, piece: Piece) -> NDArray[np.bool_]:
        """Return which of a segment's tokens [n] hold something of its `thought`."""
        start, stop = (self._text_bytes(segment.text[:end]) for end in segment.thought)
        stops = np.cumsum(piece.token_bytes, dtype=np.int64)
        starts = stops - piece.token_bytes
        # Tokens without bytes of their own, as those of a character's later parts, stand inside it.
        return (starts < stop) & (stops > start)

    def _text_bytes(self, text: str) -> int:
        ordinary = "".join(self.guard.split(text)[::2])
        return len(ordinary.replace(BREAK, "").encode())

    def _encode_apart(self, renderings: Sequence[Sequence[Segment]]) -> list[list[Piece] | Problem]:
        cut = [[self.guard.split(segment.text) for segment in parts] for parts in renderings]
        ordinary = dict.fromkeys(
            text for parts in cut for texts in parts for text in texts[::2] if text
        )
        encoded = self._text.encode([text.replace(BREAK, "") for text in ordinary])
        known: dict[str, Piece] = {}
        # A single letter that is a control token, for instance, can't be ordinary text.
        forged: set[str] = set()
        for text, one in zip(ordinary, encoded, strict=True):
            known[text] = Piece(one.ids, one.token_bytes)
            if one.problem:
                forged.add(text)
        found: list[list[Piece] | Problem] = []
        for parts in cut:
            if forged and any(text in forged for texts in parts for text in texts[::2]):
                found.append(_forged())
            else:
                found.append([_joined(self._lookup(texts, known)) for texts in parts])
        return found

    def _lookup(self, texts: Sequence[str], known: dict[str, Piece]) -> list[Piece]:
        return [
            self._special[text] if number % 2 else known[text]
            for number, text in enumerate(texts)
            if text
        ]

    def _encode_whole(self, renderings: Sequence[Sequence[Segment]]) -> list[list[Piece] | Problem]:
        texts = ["".join(segment.text for segment in parts) for parts in renderings]
        encodings = self._control.encode_batch(texts, add_special_tokens=False)
        return [
            self._by_offsets(text, encoding, parts)
            for text, encoding, parts in zip(texts, encodings, renderings, strict=True)
        ]

    def _by_offsets(
        self, text: str, encoding: Encoding, parts: Sequence[Segment]
    ) -> list[Piece] | Problem:
        ids = np.array(encoding.ids, dtype=np.uint32)
        special = self.is_special(ids)
        written = [self.special_ids[token] for token in self.guard.split(text)[1::2]]
        if self._unknown_id is not None:  # which ordinary text may become, too
            special &= ids != self._unknown_id
        expected = [index for index in written if index != self._unknown_id]
        if BREAK in text or len(expected) != int(special.sum()):
            return _forged()
        token_bytes = _bytes_by_offsets(text, encoding.offsets, len(text.encode("utf-8")))
        token_bytes[special] = 0
        ends = np.cumsum([len(segment.text) for segment in parts])
        starts, stops = self._extents(text, encoding, special)
        first = np.searchsorted(ends, starts, side="right")
        last = np.searchsorted(ends, np.maximum(stops - 1, starts), side="right")
        straddling = np.flatnonzero(first != last)
        # Between segments that are learned alike nothing is decided.
        for index in straddling:
            kinds = {parts[number].learned for number in range(first[index], last[index] + 1)}
            if len(kinds) > 1:
                around = text[max(0, starts[index] - 20) : stops[index] + 20]
                return Problem(
                    "boundary",
                    f"the token {encoding.tokens[index]!r} lies half inside and half outside "
                    f"what the assistant wrote, around {around!r}",
                )
        first = np.minimum(first, len(parts) - 1)
        return [
            Piece(ids[first == number], token_bytes[first == number])
            for number in range(len(parts))
        ]

    def _extents(
        self, text: str, encoding: Encoding, special: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each token starts and stops [n]; special tokens without the spaces they absorb."""
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        starts, stops = offsets[:, 0].copy(), offsets[:, 1].copy()
        for index in np.flatnonzero(special):
            inside = text[starts[index] : stops[index]]
            starts[index] += len(inside) - len(inside.lstrip())
            stops[index] = starts[index] + len(inside.strip())
        return starts, stops

    def _is_concatenative(self) -> bool:
        """Whether pieces encoded apart are what the tokenizer makes of the whole: tried out."""
        if _byte_table(self._plain) is None:
            return False
        added = self._control.get_added_tokens_decoder().values()
        if any(t.special and (t.lstrip or t.rstrip or t.single_word) for t in added):
            return False
        for text in _PROBES:
            # Byte-level tokens are one character a byte: more of them is a space put in front.
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
    """A tokenizer's special tokens and their ids.

    Raises:
        DataError: it has none, so nothing could end a turn.
    """
    found = {
        token.content: index
        for index, token in tokenizer.get_added_tokens_decoder().items()
        if token.special
    }
    if not found:
        raise DataError("The tokenizer has no special tokens, so nothing could end a turn.")
    return found


def _joined(pieces: Iterable[Piece]) -> Piece:
    pieces = list(pieces)
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        np.concatenate([piece.ids for piece in pieces]),
        np.concatenate([piece.token_bytes for piece in pieces]),
    )


def _forged() -> Problem:
    return Problem(
        "special_text",
        "the text spells a special token, which this tokenizer can't encode as ordinary text",
    )
