"""Text of tokens that are still being drawn: decoded piece by piece, and ended by stop strings.

A token's text depends on the tokens around it: some tokenizers drop the space of a text's first token, some
split a character over several tokens, and a run of byte tokens is only valid as a whole. So tokens are decoded
together with a few before them, and their text is given out once no following token can change it.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

# Sentencepiece's byte tokens: a run of them becomes characters only if all of it is UTF-8.
BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Prefixes of the spellings that `clean_up_tokenization_spaces` shortens, such as " ." and " n't".
_CLEANED_LATER = re.compile(r" (?:'[vr]?|n'?)?$")
# The last characters of a text that a following token may change: half a character, or such a prefix.
_UNCERTAIN = 4
# Tokens before a text that decide how it is spelled, and those after which uncertain text is cut down to them.
_CONTEXT = 16
_LONG = 64


class StreamTokenizer(Protocol):
    """Tokenizer of transformers or of the tokenizers library."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of tokens."""
        ...


class IncrementalDecoder:
    """Decoder of tokens that come one by one; joined, its pieces equal the text of all tokens decoded at once.

    `after`: tokens before these, whose text isn't given out. `shown`: special tokens that are spelled out,
    such as `[TOOL_CALLS]`; other special tokens have no text.

    The time per token depends neither on the length of the text nor on that of `after`.
    """

    def __init__(
        self,
        tokenizer: StreamTokenizer,
        after: Sequence[int] = (),
        *,
        shown: Collection[int] = (),
    ) -> None:
        self._tokenizer: Any = tokenizer
        # The two libraries name the same function differently.
        named = ("convert_ids_to_tokens", "id_to_token")
        self._name = next(getattr(tokenizer, name) for name in named if hasattr(tokenizer, name))
        self._cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._shown = frozenset(shown)
        # Tokens that are decoded together, their text, and how many of its characters were given out. The last
        # `_pending` tokens came after the last piece.
        self._window = self._end_of(after)
        self._text = self._decoded(self._window)
        self._given = len(self._text)
        self._pending = 0
        # Whether the last token is a byte token; `_text` then lacks that run.
        self._in_bytes = False

    def push(self, token: int) -> str:
        """Take a token; return the text that has become certain, or ""."""
        name = self._name(token)
        if token in self._shown:
            return self.finish() + (name or "")
        # Models may have more tokens than their tokenizer.
        if name is None:
            return ""
        if BYTE_TOKEN.fullmatch(name):
            self._window.append(token)
            self._pending += 1
            self._in_bytes = True
            return ""
        # Special tokens don't even end a run of bytes.
        if self._in_bytes and self._is_special(token):
            return ""
        text = self._decoded([*self._window, token])
        if text == self._text and self._is_special(token):
            return ""
        self._window.append(token)
        self._pending += 1
        self._text, self._in_bytes = text, False
        if self._may_change():
            return self._piece_of_long_text()
        piece = text[self._given :]
        pending_text = self._decoded(self._window[-self._pending :])
        # After a context without text, the next token would be decoded as the first of a text.
        if pending_text:
            self._window, self._text = self._window[-self._pending :], pending_text
        self._given, self._pending = len(self._text), 0
        return piece

    def finish(self) -> str:
        """Return the text that was held back, which no token follows."""
        if not self._pending:
            return ""
        piece = self._decoded(self._window)[self._given :]
        # Behind a shown token another text begins, but for the space before its first word.
        self._window = self._window[: -self._pending]
        self._text = self._decoded(self._window)
        self._given, self._pending, self._in_bytes = len(self._text), 0, False
        return piece

    def _end_of(self, after: Sequence[int]) -> list[int]:
        """Return as many of the last tokens as decide how the next is spelled."""
        start = max(0, len(after) - _CONTEXT)
        while start and BYTE_TOKEN.fullmatch(self._name(after[start]) or ""):
            start -= 1
        end = list(after[start:])
        return end if self._decoded(end) else list(after)

    def _decoded(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _is_special(self, token: int) -> bool:
        return not self._decoded([token]) and bool(
            self._tokenizer.decode([token], skip_special_tokens=False)
        )

    def _may_change(self) -> bool:
        """Tell whether a following token could change the end of the text."""
        if self._text.endswith("\ufffd"):
            return True
        if not self._cleans:
            return False
        raw = self._tokenizer.decode(
            self._window, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return _CLEANED_LATER.search(raw) is not None

    def _piece_of_long_text(self) -> str:
        """Return the certain part of a text that has been uncertain for long, as that of random bytes is."""
        if self._pending < _LONG:
            return ""
        window = self._window[-_CONTEXT:]
        text = self._decoded(window)
        end = self._text[-_UNCERTAIN:]
        if len(self._text) - _UNCERTAIN <= self._given or not text.endswith(end):
            return ""
        piece = self._text[self._given : -_UNCERTAIN]
        self._window, self._text = window, text
        self._given, self._pending = len(text) - _UNCERTAIN, len(window)
        return piece


def decode_stream(
    tokenizer: StreamTokenizer, tokens: Iterable[int], after: Sequence[int] = ()
) -> Iterator[str]:
    """Yield text as it becomes certain; joined, the pieces equal the text of all tokens decoded at once.

    `after`: tokens before these, whose text isn't yielded.
    """
    decoder = IncrementalDecoder(tokenizer, after)
    for token in tokens:
        if piece := decoder.push(token):
            yield piece
    if piece := decoder.finish():
        yield piece


class StopStrings:
    """Text that ends before the first stop string: that which is complete first, the longest of several.

    Text that may begin a stop string is held back until it can't any more. `matched`: the stop string that
    was found; `rest`: the text behind it that was pushed together with its end.

    Raises:
        ValueError: a stop string is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise ValueError("a stop string is empty")
        # The longest comes first, so that it wins where several end at the same place.
        self._prefixes = [_Prefix(stop) for stop in sorted(set(stops), key=lambda s: (-len(s), s))]
        self._held = ""
        self.matched: str | None = None
        self.rest = ""

    def push(self, text: str) -> str:
        """Take text; return what is certain not to begin a stop string, or "" after a match."""
        if self.matched is not None or not self._prefixes:
            return "" if self.matched is not None else text
        for place, character in enumerate(text):
            found = [prefix for prefix in self._prefixes if prefix.advance(character)]
            if found:
                self.matched, self.rest = found[0].whole, text[place + 1 :]
                piece = (self._held + text[: place + 1])[: -len(self.matched)]
                self._held = ""
                return piece
        whole = self._held + text
        certain = len(whole) - max(prefix.length for prefix in self._prefixes)
        self._held = whole[certain:]
        return whole[:certain]

    def finish(self) -> str:
        """Return the text that was held back, which no other text follows."""
        held, self._held = self._held, ""
        return held


class _Prefix:
    """Longest prefix of a string with which a text ends, character by character (Knuth, Morris, Pratt 1977)."""

    def __init__(self, whole: str) -> None:
        self.whole = whole
        self.length = 0
        # The length of the longest proper prefix of each prefix that also ends it.
        self._shorter = [0] * len(whole)
        for end in range(1, len(whole)):
            length = self._shorter[end - 1]
            while length and whole[end] != whole[length]:
                length = self._shorter[length - 1]
            self._shorter[end] = length + (whole[end] == whole[length])

    def advance(self, character: str) -> bool:
        """Take the next character; tell whether the text now ends with the whole string."""
        length = self.length
        while length and self.whole[length] != character:
            length = self._shorter[length - 1]
        self.length = length + (self.whole[length] == character)
        return self.length == len(self.whole)


class AnswerText:
    """Text of an answer whose tokens come one by one, up to the first stop string.

    `after`: the prompt's tokens; `shown`: as of `IncrementalDecoder`. Tokens that end the answer by their id
    aren't pushed. `offsets`: for each token pushed, the number of characters of the answer before it; a token
    in the middle of a character has that of the character.
    """

    def __init__(
        self,
        tokenizer: StreamTokenizer,
        *,
        after: Sequence[int] = (),
        stops: Sequence[str] = (),
        shown: Collection[int] = (),
    ) -> None:
        self._decoder = IncrementalDecoder(tokenizer, after, shown=shown)
        self._stops = StopStrings(stops)
        self._decoded = 0
        self._returned = 0
        self.offsets: list[int] = []

    @property
    def matched(self) -> str | None:
        """The stop string that ended the answer."""
        return self._stops.matched

    @property
    def stopped(self) -> bool:
        """True once a stop string has ended the answer, whose request can be canceled."""
        return self._stops.matched is not None

    @property
    def tokens_begun(self) -> int:
        """Number of tokens that begin before the end of the text returned so far."""
        return bisect_left(self.offsets, self._returned)

    def push(self, token: int) -> str:
        """Take a token; return the text that has become certain, or ""."""
        if self.stopped:
            return ""
        self.offsets.append(self._decoded)
        return self._passed(self._decoder.push(token))

    def finish(self) -> str:
        """Return the text that was held back, which no token follows."""
        if self.stopped:
            return ""
        piece = self._passed(self._decoder.finish())
        held = self._stops.finish()
        self._returned += len(held)
        return piece + held

    def _passed(self, piece: str) -> str:
        self._decoded += len(piece)
        piece = self._stops.push(piece)
        self._returned += len(piece)
        return piece
