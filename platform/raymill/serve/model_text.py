"""Text side of a served model: prompts to tokens, and tokens to the spellings that responses show."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.data.messages.folder import load_chat_encoder
from raymill.data.store.manifest import read_tokenizer
from raymill.data.text.control_tokens import named_stops
from raymill.data.text.special_tokens import apply_settings
from raymill.data.text.text_prompts import TextPrompts
from raymill.data.text.tokenizer import read_settings
from raymill.errors import DataError
from raymill.generate.answer_form import answer_form
from raymill.generate.constraint import ConstraintFactory
from raymill.generate.decoding import AnswerText
from raymill.generate.token_text import TokenTexts
from raymill.model.shape import first_number, read_config

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from raymill.data.messages.encode import ChatEncoder


class ModelText:
    """Tokenizer and chat template of a model's folder; `chat` is None where it has no template.

    Raises:
        DataError: a file of the folder is missing or damaged, or the template can't be used.
    """

    def __init__(self, folder: Path) -> None:
        settings = read_settings(folder)
        self.tokenizer: Tokenizer = apply_settings(
            read_tokenizer(folder / "tokenizer.json"), settings
        )
        self.chat: ChatEncoder | None = load_chat_encoder(folder)
        self._prompts = TextPrompts.from_folder(folder)
        self.text_stops = frozenset(named_stops(folder, self.tokenizer))
        self.chat_stops = self.text_stops | (self.chat.stop_ids if self.chat else frozenset())
        self.vocab_size = max(self.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        # The model's may be larger, for the sake of its matrices' shape.
        self._width = int(first_number(read_config(folder), ("vocab_size",)) or self.vocab_size)
        self._tokens = TokenTexts(self.tokenizer)
        self.form = None if self.chat is None else answer_form(self.chat)

    def prompt_ids(self, text: str) -> list[int]:
        """Return the tokens of a text that is continued. Raises DataError if it can't be encoded."""
        return self._prompts.ids(text)

    def chat_ids(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
    ) -> list[int]:
        """Return the tokens of a conversation up to the assistant's answer.

        Raises:
            DataError: the model has no chat template, or the template refuses these messages.
        """
        if self.chat is None:
            raise DataError(
                "the model has no chat template, so it can only continue text (/v1/completions)"
            )
        return self.chat.prompt_ids(messages, tools)

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of tokens, with special tokens spelled out or left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=not special))

    def answer_text(
        self, after: Sequence[int], stops: Sequence[str] = (), shown: Collection[int] = ()
    ) -> AnswerText:
        """Return a decoder of one answer; see `AnswerText`."""
        return AnswerText(self.tokenizer, after=after, stops=stops, shown=shown)

    @cached_property
    def constraints(self) -> ConstraintFactory:
        """Grammars for the answers of chats."""
        return ConstraintFactory(self.tokenizer, self._width, self.chat_stops)

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes of text that a token stands for."""
        return self._tokens.bytes(token)

    def spelling(self, token: int) -> str:
        """Return a token's text, or its bytes as `bytes:\\xe2\\x82` where they aren't whole characters.

        Different tokens must not look alike, since clients compare spellings.
        """
        raw = self.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
