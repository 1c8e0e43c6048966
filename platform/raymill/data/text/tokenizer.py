"""Tokenizer: trained on training text or loaded, saved as a Hugging Face folder.

Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) through HF `tokenizers`. `transformers`
isn't imported: the folder that it reads is two small JSON files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.data.store.manifest import TokenizerIdentity, read_tokenizer
from raymill.data.text.special_tokens import (
    TokenizerSettings,
    apply_settings,
    begins_with,
    special_ids,
)
from raymill.data.text.special_tokens import special_token_variables as special_token_variables
from raymill.durable import JsonObject, canonical_json, fsync_path, sha256_text, write_atomic
from raymill.errors import DataError
from raymill.reading import is_file, is_folder, read_bytes, read_json
from raymill.schema.data_sections import TokenizerConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

AUTO, END_OF_TEXT = "auto", "<|endoftext|>"
SETTINGS_NAME = "tokenizer_config.json"
# Older folders name special tokens and list added ones in these files; they are read, but their
# contents are written into the settings.
SPECIAL_NAME, ADDED_NAME = "special_tokens_map.json", "added_tokens.json"
TEMPLATE_NAME = "chat_template.jinja"


def train(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """Train a byte-level BPE; the same texts give the same tokenizer."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if config.pattern is not None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(config.pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[AddedToken(config.end_of_text, special=True, normalized=False)],
        # All 256 bytes are in the vocabulary, so that any text can be encoded.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def end_of_text_of(config: TokenizerConfig) -> str:
    """Return the token that separates documents.

    `auto` is the eos_token that an existing tokenizer's folder names, or else `<|endoftext|>`.
    """
    if config.end_of_text != AUTO:
        return config.end_of_text
    named = {} if config.path is None else special_token_variables(read_settings(Path(config.path)))
    return named.get("eos_token", END_OF_TEXT)


def read_settings(folder: Path) -> JsonObject:
    """Read the settings of a folder's tokenizer besides tokenizer.json.

    They are in `tokenizer_config.json` and the older special_tokens_map.json and added_tokens.json,
    and are merged as transformers does it.

    Raises:
        DataError: a file isn't a JSON object.
        StorageError: a file can't be read.
    """
    settings = read_object(folder / SETTINGS_NAME)
    named = read_object(folder / SPECIAL_NAME)
    if "added_tokens_decoder" in settings:
        return {**named, **{key: value for key, value in settings.items() if value is not None}}
    settings = {**settings, **named}
    special = set(special_token_variables(settings).values())
    added = {
        str(index): {
            "content": token,
            "special": token in special,
            "normalized": token not in special,
        }
        for token, index in read_object(folder / ADDED_NAME).items()
    }
    return {**settings, "added_tokens_decoder": added} if added else settings


def write_settings(folder: Path, settings: TokenizerSettings) -> None:
    """Write a folder's `tokenizer_config.json`."""
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomic(folder / SETTINGS_NAME, text + "\n")


def read_object(path: Path) -> JsonObject:
    """Read the object in a JSON file; an empty one where there is no file.

    Raises:
        DataError: it holds something else.
        StorageError: it can't be read.
    """
    value = read_json(path, missing={})
    if not isinstance(value, dict):
        raise DataError(f"{path} holds {type(value).__name__}, expected an object.")
    return value


def load(path: Path, end_of_text: str) -> Tokenizer:
    """Load a `tokenizer.json` or the folder that holds one.

    Raises:
        DataError: there is no tokenizer, or it has no special token `end_of_text`.
    """
    file = tokenizer_file(path)
    try:
        tokenizer = read_tokenizer(file)
    except DataError as error:
        raise DataError(f"tokenizer.path: {error}") from error
    apply_settings(tokenizer, read_settings(path) if is_folder(path) else {})
    special = sorted(special_ids(tokenizer))
    if end_of_text not in special:
        known = ", ".join(special[:12]) or "none"
        raise DataError(
            f"tokenizer.path: {file} has no special token {end_of_text!r}, which separates "
            f"documents; set tokenizer.end_of_text to one of its special tokens: {known}."
        )
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> None:
    """Make `tokens` special, and add those that the vocabulary lacks."""
    from tokenizers import AddedToken

    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens]
    )


def tokenizer_file(path: Path) -> Path:
    """Return the `tokenizer.json` that a path refers to; raise DataError if there is none."""
    file = path / "tokenizer.json" if is_folder(path) else path
    if not is_file(file):
        raise DataError(
            f"tokenizer.path: {file} doesn't exist; expected a tokenizer.json or a Hugging Face "
            "folder with one. Leave tokenizer.path out to train a tokenizer."
        )
    return file


def fingerprint(tokenizer: Tokenizer) -> str:
    """Return the sha256 of the canonical JSON, equal to `manifest.tokenizer_fingerprint` of the
    saved file."""
    return sha256_text(canonical_json(json.loads(tokenizer.to_str())))


def identity(tokenizer: Tokenizer, end_of_text: str) -> TokenizerIdentity:
    """Return the manifest's entry for a tokenizer. The vocabulary's size is the largest id + 1."""
    token_id = tokenizer.token_to_id(end_of_text)
    if token_id is None:
        raise DataError(f"The tokenizer has no token {end_of_text!r}.")
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return TokenizerIdentity(fingerprint(tokenizer), vocab_size, token_id, begins_with(tokenizer))


def save(tokenizer: Tokenizer, folder: Path, end_of_text: str, source: Path | None = None) -> None:
    """Write a folder that `transformers.AutoTokenizer.from_pretrained` loads offline.

    A loaded tokenizer's settings and chat template are kept from its `source` folder; its padding,
    which is masked by length, is its own or end of text. Where the settings name no token at all,
    end of text also serves as beginning, since it is the token before a document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings: JsonObject = {}
    if source is not None and is_folder(source):
        if is_file(source / TEMPLATE_NAME):
            (folder / TEMPLATE_NAME).write_bytes(read_bytes(source / TEMPLATE_NAME))
        settings = read_settings(source)
        # Not every library reads a token that is a mapping.
        settings.update(special_token_variables(settings))
    if not special_token_variables(settings):
        first = next(iter(begins_with(tokenizer)), None)
        settings["bos_token"] = end_of_text if first is None else tokenizer.id_to_token(first)
    if settings.get("pad_token") is None:
        settings["pad_token"] = end_of_text
    settings["eos_token"] = end_of_text
    settings.setdefault("clean_up_tokenization_spaces", False)
    # Another class would rebuild the tokenizer from its vocabulary, by the current rules of its family.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    # auto_map names code to run, which must not be copied; tokenizer.json lists the tokens.
    for name in ("auto_map", "added_tokens_decoder"):
        settings.pop(name, None)
    write_settings(folder, settings)
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    fsync_path(folder)
