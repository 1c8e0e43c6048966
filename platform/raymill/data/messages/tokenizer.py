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

from raymill.data.messages.chatml import BRIEF, BRIEF_TOKENS
from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.folder import TEMPLATE_NAME, closing_ids, own_template
from raymill.data.messages.template import CHATML, ChatTemplate
from raymill.data.store.manifest import TokenizerIdentity, read_tokenizer
from raymill.data.text import tokenizer as tokenizers_room
from raymill.data.text.control_tokens import GENERATION_NAME, end_of_text_among, model_stops
from raymill.data.text.tokenizer import (
    SETTINGS_NAME,
    read_settings,
    special_token_variables,
    write_settings,
)
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
    call_end_ids: tuple[int, ...]  # end turns that call tools, where these end otherwise
    added: tuple[str, ...]  # special tokens that the parent's tokenizer didn't have
    closing_ids: tuple[int, ...]  # what the template writes after the assistant's last turn

    @property
    def identity(self) -> TokenizerIdentity:
        """As the manifest names it."""
        return tokenizers_room.identity(self.tokenizer, self.end_of_text)

    @property
    def template_sha256(self) -> str:
        """The template's identity."""
        return sha256_text(self.template)

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoTokenizer.from_pretrained` loads offline, template included.

        The end of a turn is its `eos_token`: that is where generation stops. What else ends one is in
        generation_config.json. What begins a text, and what pads, stay the parent's.
        """
        tokenizers_room.save(self.tokenizer, folder, self.end_of_text)
        written = json.loads(read_text(folder / SETTINGS_NAME))
        settings = {**written, "bos_token": None, **self.settings}
        for name in ("auto_map", "chat_template", "added_tokens_decoder", "extra_special_tokens"):
            settings.pop(name, None)  # tokenizer.json lists the tokens, and the template is a file
        settings["tokenizer_class"] = written["tokenizer_class"]
        settings["eos_token"] = self.tokenizer.id_to_token(self.end_of_turn_id)
        settings["pad_token"] = settings.get("pad_token") or self.end_of_text
        write_settings(folder, settings)
        write_atomic(folder / TEMPLATE_NAME, self.template)
        if self.call_end_ids:
            stops = {"eos_token_id": [self.end_of_turn_id, *self.call_end_ids]}
            write_atomic(folder / GENERATION_NAME, json.dumps(stops) + "\n")


def chat_tokenizer(parent: Path, template: str, special_tokens: Sequence[str]) -> ChatTokenizer:
    """The tokenizer of `parent` (a Hugging Face folder) with the template that `data.template` means.

    Raises:
        ConfigError: there is no such template file, or it isn't text.
        DataError: the parent has no usable tokenizer, or the template doesn't work with it.
    """
    settings = read_settings(parent)
    named = special_token_variables(settings)
    source, wanted = _template(parent, settings, template)
    if not is_file(parent / "tokenizer.json"):
        raise DataError(
            f"{parent} has no tokenizer.json, which is what a parent's text is encoded with; save its "
            "tokenizer there in that form (AutoTokenizer.from_pretrained(…).save_pretrained(…))."
        )
    stops = _stops(parent)
    end_of_text = end_of_text_among(named, stops)
    if end_of_text is None:
        raise DataError(
            f"{parent / SETTINGS_NAME} names no eos_token, so there is nothing that ends a text; "
            "name one there."
        )
    tokenizer = tokenizers_room.load(parent, end_of_text)
    added = tuple(
        token for token in (*wanted, *special_tokens) if tokenizer.token_to_id(token) is None
    )
    tokenizers_room.add_special_tokens(tokenizer, (*wanted, *special_tokens))
    encoder = ChatEncoder(tokenizer, ChatTemplate(source, named))
    end_of_turn = tokenizer.id_to_token(encoder.end_of_turn_id)
    end_of_text = end_of_text_among(named, stops, end_of_turn) or end_of_text
    source = _with_own_end(source, named.get("eos_token"), end_of_turn)
    return ChatTokenizer(
        tokenizer,
        source,
        settings,
        end_of_text,
        encoder.end_of_turn_id,
        encoder.call_end_ids,
        added,
        closing_ids(encoder),
    )


def _stops(parent: Path) -> list[str]:
    """Tokens at which the parent's model stops."""
    tokenizer = read_tokenizer(tokenizers_room.tokenizer_file(parent))
    found = (tokenizer.id_to_token(index) for index in model_stops(parent, tokenizer))
    return [token for token in found if token is not None]


def _with_own_end(source: str, eos: str | None, end_of_turn: str | None) -> str:
    """The template with the parent's eos_token, where it names that and the saved folder names another."""
    if eos in (None, end_of_turn) or "eos_token" not in source:
        return source
    return f"{{% set eos_token = {json.dumps(eos)} %}}\n{source}"


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
        DataError: the two disagree about a token that both have, or about an id.
    """
    files = (tokenizers_room.tokenizer_file(place) for place in (parent, folder))
    theirs, ours = (read_tokenizer(file) for file in files)
    before, now = (one.get_vocab(with_added_tokens=True) for one in (theirs, ours))
    differ = [
        token for token in before.keys() - _beside(theirs, ours) if now.get(token) != before[token]
    ]
    if differ:
        token = min(differ)
        raise DataError(
            f"{folder} was prepared with another tokenizer than {parent} has: {token!r} is "
            f"{now.get(token)} there and {before[token]} here."
        )
    return sorted(index for token, index in now.items() if token not in before)


def encodes_as(judge: Path, policy: Tokenizer) -> bool:
    """Tell whether the tokenizer in `judge` is the policy's, but for special tokens that it has beside, as a
    reward model has its own padding."""
    theirs = read_tokenizer(tokenizers_room.tokenizer_file(judge))
    beside = _beside(theirs, policy)
    found = json.loads(theirs.to_str())
    found["added_tokens"] = [one for one in found["added_tokens"] if one["content"] not in beside]
    return bool(found == json.loads(policy.to_str()))


def _beside(theirs: Tokenizer, ours: Tokenizer) -> set[str]:
    """Special tokens that the one tokenizer has and the other not, with ids that mean nothing there."""
    vocabulary = ours.get_vocab(with_added_tokens=True)
    taken = {*vocabulary.values()}
    return {
        token.content
        for index, token in theirs.get_added_tokens_decoder().items()
        if token.special and token.content not in vocabulary and index not in taken
    }
