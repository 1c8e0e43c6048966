"""Tokenizer: trained on training text or loaded, saved as a Hugging Face folder, with exact byte
counts.

Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) through HF `tokenizers`. `transformers`
isn't imported: the folder that it reads is two small JSON files.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raymill.data.store.manifest import TokenizerIdentity, read_tokenizer
from raymill.data.text.special_tokens import (
    TokenizerSettings,
    apply_settings,
    begins_with,
    special_ids,
    unknown_id,
    without_control_tokens,
)
from raymill.data.text.special_tokens import special_token_variables as special_token_variables
from raymill.data.text.windows import TokenSpans, in_windows
from raymill.durable import JsonObject, canonical_json, fsync_path, sha256_text, write_atomic
from raymill.errors import DataError
from raymill.reading import is_file, is_folder, read_bytes, read_json
from raymill.schema.data_sections import TokenizerConfig

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

# Characters that are encoded at once: `tokenizers` needs about 100 bytes for each token.
SLICE_CHARACTERS = 1 << 18
BATCH_CHARACTERS = 1 << 20
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


@dataclass(frozen=True)
class Encoded:
    """Token ids of a document [n] and the UTF-8 bytes behind each [n], which add up to the text's.

    `problem` is the reason why the ids don't represent the text, if they don't.
    """

    ids: NDArray[np.uint32]
    token_bytes: NDArray[np.uint32]
    problem: str = ""


class Encoder:
    """Encoder of documents; special tokens that a text spells are text and never control.

    The tokenizer is copied, not changed. No text may produce `end_of_text_id`, even if it is also
    the tokenizer's unknown token.
    """

    def __init__(self, tokenizer: Tokenizer, end_of_text_id: int) -> None:
        self._tokenizer = without_control_tokens(tokenizer)
        self._byte_table = _byte_table(tokenizer)
        self._unknown_id = unknown_id(tokenizer)
        self._control = {index: token for token, index in special_ids(tokenizer).items()}
        # Text may become the unknown token, unless that also ends documents.
        if self._unknown_id is not None and self._unknown_id != end_of_text_id:
            self._control.pop(self._unknown_id, None)

    def encode(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """Encode documents one after the other, in batches of bounded size.

        A long document is encoded in windows, so that memory stays bounded; its ids equal the
        whole's.
        """
        for batch in _batched(texts):
            if len(batch[0]) > SLICE_CHARACTERS:
                yield self._alone(batch[0])
            else:
                yield from self._together(batch)

    def _together(self, texts: list[str]) -> Iterator[Encoded]:
        """Encode documents in one call; one by one if that fails."""
        # The fast call leaves the offsets out, which byte-level tokenizers hardly ever need.
        model = self._tokenizer
        call = model.encode_batch if self._byte_table is None else model.encode_batch_fast
        try:
            encodings = call(texts, add_special_tokens=False)
        # `tokenizers` raises nothing narrower, for example for a character that Unigram lacks.
        except Exception:  # noqa: BLE001
            yield from map(self._alone, texts)
            return
        for text, encoding in zip(texts, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.uint32)
            offsets = _offsets(encoding) if self._byte_table is None else None
            yield self._measured(text, ids, offsets)

    def _alone(self, text: str) -> Encoded:
        try:
            tokens = in_windows(text, SLICE_CHARACTERS, self._tokens)
        except Exception as error:  # noqa: BLE001
            nothing = np.zeros(0, dtype=np.uint32)
            return Encoded(nothing, nothing, f"the tokenizer can't encode it ({error})")
        return self._measured(text, tokens.ids, tokens.offsets)

    def _tokens(self, text: str) -> TokenSpans:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return TokenSpans(np.array(encoding.ids, dtype=np.uint32), _offsets(encoding))

    def _measured(
        self, text: str, ids: NDArray[np.uint32], offsets: NDArray[np.int64] | None
    ) -> Encoded:
        problem = self._forged(ids)
        total = len(text.encode("utf-8"))
        if self._byte_table is not None:
            token_bytes = self._byte_table[ids]
            # If the counts add up, no character was dropped or replaced.
            if int(token_bytes.sum(dtype=np.int64)) == total:
                return Encoded(ids, token_bytes, problem)
        # A normalizer or an unknown token changed the text; character offsets still give the bytes.
        offsets = self._tokens(text).offsets if offsets is None else offsets
        if self._unknown_id is None:
            problem = problem or _lost(text, offsets)
        return Encoded(ids, _bytes_by_offsets(text, offsets, total), problem)

    def _forged(self, ids: NDArray[np.uint32]) -> str:
        forged = self._control.keys() & set(np.unique(ids).tolist())
        if not forged:
            return ""
        token = self._control[min(forged)]
        return f"the tokenizer makes its special token {token!r} of ordinary text in it"


def _batched(texts: Sequence[str]) -> Iterator[list[str]]:
    """Yield lists of about BATCH_CHARACTERS; a text longer than SLICE_CHARACTERS stands alone."""
    batch: list[str] = []
    size = 0
    for text in texts:
        if batch and (size >= BATCH_CHARACTERS or len(text) > SLICE_CHARACTERS):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
        if len(text) > SLICE_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _byte_table(tokenizer: Tokenizer) -> NDArray[np.uint32] | None:
    """Return the bytes of text by id where the vocabulary is byte-level (one character per byte),
    else None.

    Special tokens count as their spelling, but never come from text.
    """
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    kinds = [decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", ()))]
    if "ByteLevel" not in kinds:
        return None
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    table = np.zeros(max(vocab.values()) + 1, dtype=np.uint32)
    for token, index in vocab.items():
        table[index] = len(token)
    return table


def _offsets(encoding: Encoding) -> NDArray[np.int64]:
    return np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _bytes_by_offsets(text: str, offsets: ArrayLike, total: int) -> NDArray[np.uint32]:
    """Return the bytes behind each token, from its end offset ([n, 2] as `tokenizers` returns
    them).

    Text between tokens counts for the later one. The ends telescope, so the sum is exact whatever a
    normalizer dropped; the last token takes the rest.
    """
    ends = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)[:, 1]
    if not len(ends):
        return np.zeros(0, dtype=np.uint32)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    byte_at = np.concatenate([[0], np.cumsum(widths)])
    # Offsets may go back where characters were reordered.
    byte_ends = byte_at[np.maximum.accumulate(ends)]
    byte_ends[-1] = total
    return np.diff(byte_ends, prepend=0).astype(np.uint32)


def _lost(text: str, offsets: NDArray[np.int64]) -> str:
    """Report the first letter, number or sign without a token, where there is no unknown token."""
    covered = np.zeros(len(text) + 1, dtype=np.int64)
    np.add.at(covered, offsets[:, 0], 1)
    np.add.at(covered, offsets[:, 1], -1)
    for index in np.flatnonzero(np.cumsum(covered[:-1]) == 0):
        if unicodedata.category(text[index])[0] in "LNPS":
            return (
                f"the tokenizer has no token for {text[index]!r}, nor one for what it doesn't know"
            )
    return ""
