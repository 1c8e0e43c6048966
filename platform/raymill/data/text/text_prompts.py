"""Prompts that ask a model to continue a text: begun as its documents began, and with no control token that the
text spells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.data.store.manifest import read_tokenizer
from raymill.data.text.special_tokens import completed, special_token_variables, text_beginning
from raymill.data.text.tokenizer import Encoder, read_settings
from raymill.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# An empty prompt still needs a token to continue: the first of these that there is.
_STANDS_ALONE = ("bos_token", "eos_token", "pad_token")


class TextPrompts:
    """Encodes prompts with a folder's tokenizer. `tokenizer`, `settings`: as the folder's files have them."""

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> None:
        completed(tokenizer, settings)
        self._encoder = Encoder(
            tokenizer, end_of_text_id=-1
        )  # none: documents needn't be told apart
        self._beginning = text_beginning(tokenizer, settings)
        named = special_token_variables(settings)
        ids = (tokenizer.token_to_id(named[role]) for role in _STANDS_ALONE if role in named)
        self._alone = next((index for index in ids if index is not None), None)

    @classmethod
    def of_folder(cls, folder: Path) -> TextPrompts:
        """Those of a Hugging Face folder. Raises DataError where its tokenizer can't be read."""
        return cls(read_tokenizer(folder / "tokenizer.json"), read_settings(folder))

    def ids(self, text: str) -> list[int]:
        """Return what the model is given, at least one token.

        Raises:
            DataError: the tokenizer can't encode the text, or makes no token of it.
        """
        [found] = self._encoder.encode([text])
        if found.problem:
            raise DataError(f"The prompt can't be encoded: {found.problem}.")
        ids = [*self._beginning, *found.ids.tolist()]
        if not ids and self._alone is None:
            raise DataError(
                "The prompt has no tokens, and the tokenizer names none that begins or ends a text; give "
                "a prompt."
            )
        return ids or [self._alone]
