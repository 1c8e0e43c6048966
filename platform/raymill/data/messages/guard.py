"""Protection against forged control tokens: text of messages never becomes one.

A message may spell `<|im_end|>`. Before it is rendered, a noncharacter is inserted into every such spelling.
Special tokens that a regex finds in the rendering afterward were therefore written by the template; everything
else is ordinary text, from which the noncharacter is removed again.

Tokens that a tokenizer adds without marking them special (Qwen's `<think>`) are left alone, since models are
meant to write them. Where `<think>` and `</think>` are special, those of the assistant's messages stay special.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from raymill.data.messages.keys import JsonObject, Record
from raymill.data.messages.thinking import MARK
from raymill.errors import DataError

# Unicode reserves the noncharacters U+FDD0 to U+FDEF for use within programs: they occur in no text.
ASSISTANT_BEGIN = "\ufdd0"
ASSISTANT_END = "\ufdd1"
BREAK = "\ufdd2"
RESERVED = re.compile("[\ufdd0-\ufdef]")


class SpecialTokenGuard:
    """Finds and escapes a tokenizer's special tokens, longest first, as `tokenizers` matches them."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        # Where one token is a prefix of another, `tokenizers` matches the longer one.
        longest_first = sorted(set(special_tokens) - {""}, key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        # With a group, re.split also returns the separators.
        self._splitter = re.compile(f"({self._pattern.pattern})")

    def escaped(self, value: Any) -> Any:
        """Return a copy of messages or tools in which no text or key spells a special token.

        Raises:
            DataError: a noncharacter (U+FDD0 to U+FDEF), something that isn't JSON, or a special
            token of a single character, which can't be escaped.
        """
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self._escaped_text(value)
        if isinstance(value, Mapping):
            return {self.escaped(key): self.escaped(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.escaped(item) for item in value]
        raise DataError(
            f"A message holds a value of type {type(value).__name__}, which JSON doesn't have."
        )

    def escaped_message(self, message: Record) -> JsonObject:
        """Return a copy of one message like `escaped`, in which an assistant's thinking keeps its marks.

        Raises:
            DataError: as `escaped`.
        """
        copy: JsonObject = self.escaped(message)
        if copy.get("role") == "assistant" and isinstance(content := message.get("content"), str):
            # Marks of thinking may be special tokens, which an assistant's own message may contain.
            parts = MARK.split(content)
            parts[::2] = [self._escaped_text(part) for part in parts[::2]]
            copy["content"] = "".join(parts)
        return copy

    def split(self, text: str) -> list[str]:
        """Split a text into ordinary text (or "") and special tokens, alternating, text first and last."""
        return self._splitter.split(text)

    def plain(self, text: str) -> str:
        """Return a text with an object replacement character in place of each special token."""
        return self._pattern.sub("\ufffc", text)

    def end_of_last(self, text: str) -> int | None:
        """Return the index behind the last special token in a text, or None."""
        end = None
        for match in self._pattern.finditer(text):
            end = match.end()
        return end

    def _escaped_text(self, text: str) -> str:
        if (match := RESERVED.search(text)) is not None:
            raise DataError(
                f"A message contains U+{ord(match.group()):04X}, a noncharacter that Unicode keeps "
                "for internal use, as Raymill does."
            )
        # A special token may have overlapped one that was escaped, so the search is repeated.
        while self._pattern.search(text):
            if any(len(match.group()) == 1 for match in self._pattern.finditer(text)):
                raise DataError("A message spells a special token that is a single character.")
            text = self._pattern.sub(lambda match: match[0][0] + BREAK + match[0][1:], text)
        return text


def without_reserved(messages: Sequence[Record], generated: int) -> list[JsonObject]:
    """Return messages without nulls, as transformers renders them.

    In generated turns, which are replaced by their tokens, noncharacters are replaced: a model may write any
    text.
    """
    cleaned = []
    turn = 0
    for message in messages:
        copy = {key: value for key, value in message.items() if value is not None}
        if copy.get("role") == "assistant":
            for key in ("content", "reasoning_content") if turn < generated else ():
                if isinstance(copy.get(key), str):
                    copy[key] = RESERVED.sub("\ufffd", copy[key])
            turn += 1
        cleaned.append(copy)
    return cleaned
