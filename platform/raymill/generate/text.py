"""Prompts for a model that continues text, by the tokenizer that transformers loaded for it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from raymill.data.store.manifest import read_tokenizer
from raymill.data.text.text_prompts import TextPrompts
from raymill.data.text.tokenizer import read_settings
from raymill.errors import DataError
from raymill.reading import is_file


@lru_cache(maxsize=4)
def text_prompts(tokenizer: Any) -> TextPrompts:
    """Those of the folder that a tokenizer comes from.

    Raises:
        DataError: a file of the folder can't be read, or transformers has no fast tokenizer for it.
    """
    folder = Path(tokenizer.name_or_path)
    file = folder / "tokenizer.json"
    # Older folders have none: transformers makes one of what they have.
    made = getattr(tokenizer, "backend_tokenizer", None)
    backend = read_tokenizer(file) if is_file(file) else made
    if backend is None:
        raise DataError(f"{folder} has no tokenizer.json; save its tokenizer there in that form.")
    # A family's class may name tokens that its folders don't, as GPT-2's.
    return TextPrompts(backend, {**read_settings(folder), **tokenizer.special_tokens_map})
