"""A parent's tokenizer prepared for conversations, with a chat template and the special tokens that it needs.

It is saved with the prepared data and exported with the model, so that training, sampling and any Hugging
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
    """Everything that determines the token ids of conversations."""

    tokenizer: Tokenizer
    template: str  # Jinja
    settings: dict[str, Any]  # tokenizer_config.json of the parent
    end_of_text: str
    end_of_turn_id: int
    call_end_ids: tuple[int, ...]  # end turns with tool calls, where these end differently
    added: tuple[str, ...]  # special tokens that the parent's tokenizer didn't have
    closing_ids: tuple[int, ...]  # written by the template behind the assistant's last turn

    @property
    def identity(self) -> TokenizerIdentity:
        """The identity that the manifest states."""
        return tokenizers_room.identity(self.tokenizer, self.end_of_text)

    @property
    def template_sha256(self) -> str:
        """The digest of the template."""
        return sha256_text(self.template)

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoTokenizer.from_pretrained` loads offline, template included.

        Its `eos_token` is the end of a turn, where generation stops; other tokens that end a turn are in
        generation_config.json. The tokens that begin a text and that pad are the parent's.
        """
        tokenizers_room.save(self.tokenizer, folder, self.end_of_text)
        written = json.loads(read_text(folder / SETTINGS_NAME))
        settings = {**written, "bos_token": None, **self.settings}
        # tokenizer.json lists the tokens, and the template is a file of its own.
        for name in ("auto_map", "chat_template", "added_tokens_decoder", "extra_special_tokens"):
            settings.pop(name, None)
        settings["tokenizer_class"] = written["tokenizer_class"]
        settings["eos_token"] = self.tokenizer.id_to_token(self.end_of_turn_id)
        settings["pad_token"] = settings.get("pad_token") or self.end_of_text
        write_settings(folder, settings)
        write_atomic(folder / TEMPLATE_NAME, self.template)
        if self.call_end_ids:
            stops = {"eos_token_id": [self.end_of_turn_id, *self.call_end_ids]}
            write_atomic(folder / GENERATION_NAME, json.dumps(stops) + "\n")


def chat_tokenizer(parent: Path, template: str, special_tokens: Sequence[str]) -> ChatTokenizer:
    """Return the tokenizer of `parent` (a Hugging Face folder) with the template that `data.template` names.

    Raises:
        ConfigError: there is no such template file, or it isn't text.
        DataError: the parent has no usable tokenizer, or the template doesn't work with it.
    """
    settings = read_settings(parent)
    named = special_token_variables(settings)
    source, wanted = _template(parent, settings, template)
    if not is_file(parent / "tokenizer.json"):
        raise DataError(
            f"{parent} has no tokenizer.json, which is needed to encode text for this parent; save its "
            "tokenizer there in that form (AutoTokenizer.from_pretrained(…).save_pretrained(…))."
        )
    stops = _stops(parent)
    end_of_text = end_of_text_among(named, stops)
    if end_of_text is None:
        raise DataError(
            f"{parent / SETTINGS_NAME} names no eos_token, so no token ends a text; name one there."
        )
    tokenizer = tokenizers_room.load(parent, end_of_text)
    # The model's embeddings must grow by the tokens that its tokenizer didn't have.
    added = tuple(
        token for token in (*wanted, *special_tokens) if tokenizer.token_to_id(token) is None
    )
    tokenizers_room.add_special_tokens(tokenizer, (*wanted, *special_tokens))
    # Building the encoder checks that template and tokenizer fit together.
    encoder = ChatEncoder(tokenizer, ChatTemplate(source, named))
    end_of_turn = tokenizer.id_to_token(encoder.end_of_turn_id)
    # A parent may name its end of turn as eos_token; then another token ends a text.
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
    """Return the tokens at which the parent's model stops."""
    tokenizer = read_tokenizer(tokenizers_room.tokenizer_file(parent))
    tokens = (tokenizer.id_to_token(index) for index in model_stops(parent, tokenizer))
    return [token for token in tokens if token is not None]


def _with_own_end(source: str, eos: str | None, end_of_turn: str | None) -> str:
    """Bind `eos_token` in the template to the parent's, if it uses that and the saved folder names another."""
    # Templates may write eos_token, whose value changes in the saved folder.
    if eos in (None, end_of_turn) or "eos_token" not in source:
        return source
    return f"{{% set eos_token = {json.dumps(eos)} %}}\n{source}"


def _template(parent: Path, settings: dict[str, Any], template: str) -> tuple[str, tuple[str, ...]]:
    """Return the template's Jinja source, and the special tokens that it needs."""
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
    """Tell whether a Hugging Face folder has a chat template."""
    return own_template(folder, read_settings(folder)) is not None


def new_token_ids(parent: Path, folder: Path) -> list[int]:
    """Return the ids that the tokenizer in `folder` has and the parent's doesn't.

    Raises:
        DataError: the two disagree about a token that both have, or about an id.
    """
    files = (tokenizers_room.tokenizer_file(model) for model in (parent, folder))
    theirs, ours = (read_tokenizer(file) for file in files)
    before, now = (tokens.get_vocab(with_added_tokens=True) for tokens in (theirs, ours))
    differ = [
        token
        for token in before.keys() - _additional_tokens(theirs, ours)
        if now.get(token) != before[token]
    ]
    if differ:
        token = min(differ)
        raise DataError(
            f"{folder} was prepared with another tokenizer than {parent} has: {token!r} is "
            f"{now.get(token)} there and {before[token]} here."
        )
    return sorted(index for token, index in now.items() if token not in before)


def encodes_as(reward_model: Path, policy: Tokenizer) -> bool:
    """Tell whether a reward model's tokenizer encodes as the policy's, ignoring additional special tokens.

    A reward model often has a padding token of its own.
    """
    theirs = read_tokenizer(tokenizers_room.tokenizer_file(reward_model))
    additional = _additional_tokens(theirs, policy)
    tree = json.loads(theirs.to_str())
    tree["added_tokens"] = [one for one in tree["added_tokens"] if one["content"] not in additional]
    return bool(tree == json.loads(policy.to_str()))


def _additional_tokens(theirs: Tokenizer, ours: Tokenizer) -> set[str]:
    """Return the special tokens that only `theirs` has, with ids that `ours` doesn't use."""
    vocabulary = ours.get_vocab(with_added_tokens=True)
    taken = {*vocabulary.values()}
    return {
        token.content
        for index, token in theirs.get_added_tokens_decoder().items()
        if token.special and token.content not in vocabulary and index not in taken
    }
