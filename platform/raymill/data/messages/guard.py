"""What people wrote never becomes a control token.

A message may spell `<|im_end|>`. Before it is rendered, a noncharacter is put into every such
spelling; what the regex over the special tokens finds in the rendering afterwards was written by
the template, and all else is ordinary text, from which the noncharacter is taken out again.

Tokens that a tokenizer adds without calling them special (Qwen's `<think>`) are left alone: models
are meant to write those. Where `<think>` and `</think>` are special, an assistant's own stay so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from raymill.data.messages.thinking import MARK
from raymill.errors import DataError

# Unicode's noncharacters U+FDD0 to U+FDEF are for a program's own use and occur in no text.
SPOKEN_BEGIN = "\ufdd0"
SPOKEN_END = "\ufdd1"
BREAK = "\ufdd2"
RESERVED = re.compile("[\ufdd0-\ufdef]")


class Guard:
    """Knows a tokenizer's special tokens, longest first, as `tokenizers` matches them."""

    def __init__(self, special_tokens: Sequence[str]) -> None:
        longest_first = sorted(set(special_tokens) - {""}, key=lambda token: (-len(token), token))
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._splitter = re.compile(f"({self._pattern.pattern})")

    def broken(self, value: Any) -> Any:
        """A copy of messages or tools in which no text, keys included, spells a special token.

        Raises:
            DataError: a noncharacter (U+FDD0 to U+FDEF), something that isn't JSON, or a special
            token of a single character, which can't be broken.
        """
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self._broken_text(value)
        if isinstance(value, Mapping):
            return {self.broken(key): self.broken(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.broken(item) for item in value]
        raise DataError(f"A message holds {type(value).__name__}, expected only what JSON has.")

    def broken_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """As `broken`; what an assistant wrote keeps the marks of its thoughts.

        Raises:
            DataError: as `broken`.
        """
        copy: dict[str, Any] = self.broken(message)
        if copy.get("role") == "assistant" and isinstance(content := message.get("content"), str):
            parts = MARK.split(content)
            parts[::2] = [self._broken_text(part) for part in parts[::2]]
            copy["content"] = "".join(parts)
        return copy

    def split(self, text: str) -> list[str]:
        """Ordinary text and special tokens in turns, beginning and ending with (maybe no) text."""
        return self._splitter.split(text)

    def plain(self, text: str) -> str:
        """A text without its special tokens, an object replacement character in place of each."""
        return self._pattern.sub("\ufffc", text)

    def end_of_last(self, text: str) -> int | None:
        """Where the last special token in a text ends, or None."""
        end = None
        for found in self._pattern.finditer(text):
            end = found.end()
        return end

    def _broken_text(self, text: str) -> str:
        if (found := RESERVED.search(text)) is not None:
            raise DataError(
                f"A message contains U+{ord(found.group()):04X}, a noncharacter that Unicode keeps "
                "for internal use, as Raymill does."
            )
        # Again, because a special token may have overlapped one that was broken.
        while self._pattern.search(text):
            if any(len(found.group()) == 1 for found in self._pattern.finditer(text)):
                raise DataError("A message spells a special token that is a single character.")
            text = self._pattern.sub(lambda found: found[0][0] + BREAK + found[0][1:], text)
        return text
