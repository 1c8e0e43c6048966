"""Read the chat template of a Hugging Face folder, next to its tokenizer.

It is found by the rule of `transformers` (`chat_template.jinja` wins over `tokenizer_config.json`), which isn't
imported for it: a folder is a few JSON files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raymill.data.messages.conversation import Problem
from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.template import ChatTemplate
from raymill.data.messages.template_probes import PROBES
from raymill.data.store.manifest import read_tokenizer
from raymill.data.text.control_tokens import named_stops
from raymill.data.text.special_tokens import apply_settings
from raymill.data.text.tokenizer import read_settings, special_token_variables
from raymill.errors import DataError
from raymill.reading import MISSING, is_file, read_text

TEMPLATE_NAME = "chat_template.jinja"


def load_chat_encoder(folder: Path) -> ChatEncoder | None:
    """Return the encoder of a model's own chat template, or None if its folder has none.

    Its `stop_ids` include those that the folder's generation settings name.

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
    # Models may stop at more tokens than the template's end of turn, which only their settings name.
    encoder.stop_ids |= frozenset(named_stops(folder, tokenizer))
    return encoder


def closing_ids(encoder: ChatEncoder) -> tuple[int, ...]:
    """Return the tokens that a template writes after the end of the assistant's last turn, as a new line."""
    # The template is rendered once, since nothing else tells what it writes last.
    [chat] = encoder.encode(PROBES[:1])
    assert not isinstance(chat, Problem), f"the encoder was built with this conversation: {chat}"
    return tuple(chat.ids[int(chat.learned.nonzero()[0][-1]) + 1 :].tolist())


def own_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Return the chat template of a Hugging Face folder, from its own file or from the tokenizer's settings."""
    path = folder / TEMPLATE_NAME
    if is_file(path):
        return _text(path)
    template = settings.get("chat_template")
    # A folder may have several templates: [{"name": "default", "template": …}, …].
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _text(path: Path) -> str:
    try:
        return read_text(path)
    except (*MISSING, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}).") from error
