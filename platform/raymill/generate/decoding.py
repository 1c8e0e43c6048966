"""Text of tokens that are still being drawn.

A token's text depends on the tokens around it: the first of a text loses its space in one family of
tokenizers, a character is made of several in another, and a run of bytes stands or falls as a whole. So
tokens are decoded behind those before them, and given out once none that follows can change them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

# Sentencepiece's byte tokens: a run of them becomes characters only if all of it is UTF-8.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Beginnings of what `clean_up_tokenization_spaces` shortens, as " ." and " n't".
_CLEANED_LATER = re.compile(r" (?:'[vr]?|n'?)?$")


def decode_stream(
    tokenizer: Any, tokens: Iterable[int], after: Sequence[int] = ()
) -> Iterator[str]:
    """Yield text as it becomes certain; put together, what decoding the tokens whole gives.

    `tokenizer`: transformers' or one of `tokenizers`; `after`: tokens before these, whose text isn't given out.
    """
    context, pending = list(after), list[int]()
    for token in tokens:
        if _is_left_out(tokenizer, token):
            continue
        pending.append(token)
        if not _may_change(tokenizer, context, pending):
            if piece := _behind(tokenizer, context, pending):
                yield piece
            # Behind a context without text, what follows would count as the beginning.
            context = pending if _decoded(tokenizer, pending) else context + pending
            pending = []
    if piece := _behind(tokenizer, context, pending):
        yield piece


def _is_left_out(tokenizer: Any, token: int) -> bool:
    """Tell whether a token is special: those have no text, and don't even end a run of bytes."""
    return not _decoded(tokenizer, [token]) and bool(
        tokenizer.decode([token], skip_special_tokens=False)
    )


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text


def _behind(tokenizer: Any, context: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add to that of `context`."""
    told = _decoded(tokenizer, context)
    return _decoded(tokenizer, [*context, *ids])[len(told) :]


def _may_change(tokenizer: Any, context: Sequence[int], ids: Sequence[int]) -> bool:
    """Tell whether a token that follows could change the text of `ids`."""
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
