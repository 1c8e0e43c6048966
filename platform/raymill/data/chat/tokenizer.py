"""A parent's tokenizer made ready for conversations: its template, and the tokens that it needs.

Saved with the prepared data and exported with the model, so that training, sampling and any Hugging
Face tool render and encode a conversation alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.data import tokenizer as tokenizers_room
from raymill.data.chat.chatml import BRIEF, BRIEF_TOKENS
from raymill.data.chat.encode import ChatEncoder
from raymill.data.chat.folder import TEMPLATE_NAME, own_template
from raymill.data.chat.template import CHATML, ChatTemplate
from raymill.data.manifest import TokenizerIdentity, read_tokenizer
from raymill.data.tokenizer import SETTINGS_NAME, read_settings, special_token_variables
from raymill.durable import sha256_text, write_atomic
from raymill.errors import ConfigError, DataError
from raymill.reading import MISSING, is_file, read_text, user_path

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class ChatTokenizer:
    """Everything that decides how conversations become ids."""

    tokenizer: Tokenizer
    template: str  # Jinja
    settings: dict[str, Any]  # tokenizer_config.json of the parent
    end_of_text: str
    end_of_turn_id: int
    added: tuple[str, ...]  # special tokens that the parent's tokenizer didn't have

    @property
    def identity(self) -> TokenizerIdentity:
        """As the manifest names it."""
        return tokenizers_room.identity(self.tokenizer, self.end_of_text)

    @property
    def template_sha256(self) -> str:
        """Which template it is."""
        return sha256_text(self.template)

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoTokenizer.from_pretrained` loads offline, template included.

        The end of a turn is its `eos_token`: that is where generation stops.
        """
        tokenizers_room.save(self.tokenizer, folder, self.end_of_text)
        written = json.loads(read_text(folder / SETTINGS_NAME))
        settings = {**written, **self.settings}
        for name in ("auto_map", "chat_template", "added_tokens_decoder", "extra_special_tokens"):
            settings.pop(name, None)  # tokenizer.json lists the tokens, and the template is a file
        settings["eos_token"] = self.tokenizer.id_to_token(self.end_of_turn_id)
        settings["pad_token"] = self.end_of_text
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
        write_atomic(folder / SETTINGS_NAME, text + "\n")
        write_atomic(folder / TEMPLATE_NAME, self.template)


def chat_tokenizer(parent: Path, template: str, special_tokens: Sequence[str]) -> ChatTokenizer:
    """The tokenizer of `parent` (a Hugging Face folder) with the template that `data.template` means.

    Raises:
        ConfigError: there is no such template file, or it isn't text.
        DataError: the parent has no usable tokenizer, or the template doesn't work with it.
    """
    settings = read_settings(parent)
    named = special_token_variables(settings)
    source, wanted = _template(parent, settings, template)
    end_of_text = named.get("eos_token") or named.get("pad_token") or named.get("bos_token")
    if end_of_text is None:
        raise DataError(
            f"{parent / SETTINGS_NAME} names no eos_token, so there is nothing that ends a text; "
            "name one there."
        )
    if not is_file(parent / "tokenizer.json"):
        raise DataError(
            f"{parent} has no tokenizer.json, which is what a parent's text is encoded with; save its "
            "tokenizer there in that form (AutoTokenizer.from_pretrained(…).save_pretrained(…))."
        )
    tokenizer = tokenizers_room.load(parent, end_of_text)
    added = tuple(
        token for token in (*wanted, *special_tokens) if tokenizer.token_to_id(token) is None
    )
    tokenizers_room.add_special_tokens(tokenizer, (*wanted, *special_tokens))
    encoder = ChatEncoder(tokenizer, ChatTemplate(source, named))
    if tokenizer.token_to_id(end_of_text) == encoder.end_of_turn_id:
        # A chat model's eos_token ends its turns; what ends a text goes by another name.
        end_of_text = named.get("pad_token") or named.get("bos_token") or end_of_text
    return ChatTokenizer(tokenizer, source, settings, end_of_text, encoder.end_of_turn_id, added)


def _template(parent: Path, settings: dict[str, Any], template: str) -> tuple[str, tuple[str, ...]]:
    """(Jinja source, special tokens it brings along)."""
    if template == "auto":
        own = own_template(parent, settings)
        return (CHATML, CHATML_TOKENS) if own is None else (own, ())
    if template == "chatml":
        return CHATML, CHATML_TOKENS
    if template == "brief":
        return BRIEF, BRIEF_TOKENS
    try:
        return read_text(user_path(template)), ()
    except (*MISSING, UnicodeDecodeError) as error:
        raise ConfigError(
            [f"data.template={template}: expected auto, chatml, brief or a Jinja file ({error})"]
        ) from error


def has_template(folder: Path) -> bool:
    """Whether a Hugging Face folder carries a chat template."""
    return own_template(folder, read_settings(folder)) is not None


def new_token_ids(parent: Path, folder: Path) -> list[int]:
    """Ids that the tokenizer in `folder` has and `parent`'s doesn't know.

    Raises:
        DataError: the two disagree about a token that both have.
    """
    files = (tokenizers_room.tokenizer_file(place) for place in (parent, folder))
    before, now = (read_tokenizer(file).get_vocab(with_added_tokens=True) for file in files)
    differ = [token for token, index in before.items() if now.get(token) != index]
    if differ:
        raise DataError(
            f"{folder} was prepared with another tokenizer than {parent} has: {differ[0]!r} is "
            f"{now.get(differ[0])} there and {before[differ[0]]} here."
        )
    return sorted(index for token, index in now.items() if token not in before)
