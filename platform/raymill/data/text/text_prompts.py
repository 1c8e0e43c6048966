"""Encode prompts that a model continues: begun as its documents, without control tokens from the
text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raymill.data.store.manifest import read_tokenizer
from raymill.data.text.encoder import Encoder
from raymill.data.text.special_tokens import (
    TokenizerSettings,
    apply_settings,
    special_token_variables,
    text_beginning,
)
from raymill.data.text.tokenizer import read_settings
from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# An empty prompt still needs a token to continue: the first of these that exists.
_STANDS_ALONE = ("bos_token", "eos_token", "pad_token")


class TextPrompts:
    """Encoder of prompts with a folder's tokenizer and its settings."""

    def __init__(self, tokenizer: Tokenizer, settings: TokenizerSettings) -> None:
        apply_settings(tokenizer, settings)
        # A prompt is one document, so no end-of-text token separates any.
        self._encoder = Encoder(tokenizer, end_of_text_id=-1)
        self._beginning = text_beginning(tokenizer, settings)
        named = special_token_variables(settings)
        ids = (tokenizer.token_to_id(named[role]) for role in _STANDS_ALONE if role in named)
        self._alone = next((index for index in ids if index is not None), None)

    @classmethod
    def from_folder(cls, folder: Path) -> TextPrompts:
        """Use the tokenizer of a Hugging Face folder. Raises DataError if it can't be read."""
        return cls(read_tokenizer(folder / "tokenizer.json"), read_settings(folder))

    def ids(self, text: str) -> list[int]:
        """Return the ids of a prompt, at least one.

        Raises:
            DataError: the tokenizer can't encode the text, or produces no token for it.
        """
        [encoded] = self._encoder.encode([text])
        if encoded.problem:
            raise DataError(f"The prompt can't be encoded: {encoded.problem}.")
        ids = [*self._beginning, *encoded.ids.tolist()]
        if not ids and self._alone is None:
            raise DataError(
                "The prompt has no tokens, and the tokenizer names none that begins or ends a text; "
                "enter a prompt."
            )
        return ids or [self._alone]
