"""Streaming decoder: text of tokens that are still being drawn.

A token's text depends on the tokens around it: some tokenizers drop the space of a text's first token, some
split a character over several tokens, and a run of byte tokens is only valid as a whole. So tokens are decoded
together with those before them, and their text is yielded once no following token can change it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

# Sentencepiece's byte tokens: a run of them becomes characters only if all of it is UTF-8.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Prefixes of the spellings that `clean_up_tokenization_spaces` shortens, such as " ." and " n't".
_CLEANED_LATER = re.compile(r" (?:'[vr]?|n'?)?$")


class StreamTokenizer(Protocol):
    """Tokenizer of transformers or of the tokenizers library."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """Return the text of tokens."""
        ...


def decode_stream(
    tokenizer: StreamTokenizer, tokens: Iterable[int], after: Sequence[int] = ()
) -> Iterator[str]:
    """Yield text as it becomes certain; joined, the pieces equal the text of all tokens decoded at once.

    `after`: tokens before these, whose text isn't yielded.
    """
    context, pending = list(after), list[int]()
    for token in tokens:
        if _is_special(tokenizer, token):
            continue
        pending.append(token)
        if not _may_change(tokenizer, context, pending):
            if piece := _added_text(tokenizer, context, pending):
                yield piece
            # After a context without text, the next token would be decoded as the first of a text.
            context = pending if _decoded(tokenizer, pending) else context + pending
            pending = []
    if piece := _added_text(tokenizer, context, pending):
        yield piece


def _is_special(tokenizer: StreamTokenizer, token: int) -> bool:
    """Tell whether a token is special: those have no text, and don't even end a run of bytes."""
    return not _decoded(tokenizer, [token]) and bool(
        tokenizer.decode([token], skip_special_tokens=False)
    )


def _decoded(tokenizer: StreamTokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True)


def _added_text(tokenizer: StreamTokenizer, context: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text that `ids` add to that of `context`."""
    context_text = _decoded(tokenizer, context)
    return _decoded(tokenizer, [*context, *ids])[len(context_text) :]


def _may_change(tokenizer: Any, context: Sequence[int], ids: Sequence[int]) -> bool:
    """Tell whether a following token could change the text of `ids`."""
    # The two libraries name the same function differently.
    name = getattr(tokenizer, "convert_ids_to_tokens", None) or tokenizer.id_to_token
    if _BYTE.fullmatch(name(ids[-1]) or ""):
        return True
    whole = [*context, *ids]
    if _decoded(tokenizer, whole).endswith("\ufffd"):
        return True
    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return False
    raw = tokenizer.decode(whole, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return _CLEANED_LATER.search(raw) is not None
