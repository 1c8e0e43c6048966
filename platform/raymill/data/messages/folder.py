"""The chat template that lies in a Hugging Face folder beside its tokenizer.

Read as `transformers` reads it (`chat_template.jinja` wins over `tokenizer_config.json`), but
without importing it: a folder is a few JSON files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymill.data.messages.conversation import Problem
from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.probes import EXCHANGES
from raymill.data.messages.template import ChatTemplate
from raymill.data.store.manifest import read_tokenizer
from raymill.data.text.control_tokens import named_stops
from raymill.data.text.special_tokens import apply_settings
from raymill.data.text.tokenizer import read_settings, special_token_variables
from raymill.errors import DataError
from raymill.reading import MISSING, is_file, read_text

TEMPLATE_NAME = "chat_template.jinja"


def load_chat_encoder(folder: Path) -> ChatEncoder | None:
    """The encoder of a model's own chat template, or None if its folder has none.

    It stops where the folder's model is said to.

    Raises:
        DataError: the template or the tokenizer can't be read, or they don't go together.
    """
    settings = read_settings(folder)
    source = own_template(folder, settings)
    if source is None:
        return None
    path = folder / "tokenizer.json"
    try:
        tokenizer = apply_settings(read_tokenizer(path), settings)
    except DataError as error:
        raise DataError(
            f"{folder} has a chat template, but {path} can't be read ({error})."
        ) from error
    variables = special_token_variables(settings)
    try:
        encoder = ChatEncoder(tokenizer, ChatTemplate(source, variables))
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    encoder.stop_ids |= frozenset(named_stops(folder, tokenizer))
    return encoder


def closing_ids(encoder: ChatEncoder) -> tuple[int, ...]:
    """Tokens that a template writes after the end of the assistant's last turn, a new line for instance."""
    [chat] = encoder.encode(EXCHANGES[:1])
    assert not isinstance(chat, Problem)
    return tuple(chat.ids[int(chat.learned.nonzero()[0][-1]) + 1 :].tolist())


def own_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template that a Hugging Face folder carries, in either of its two places."""
    path = folder / TEMPLATE_NAME
    if is_file(path):
        return _text(path)
    found = settings.get("chat_template")
    if isinstance(found, list):  # several by name, as in [{"name": "default", "template": …}, …]
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (*MISSING, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}).") from error
