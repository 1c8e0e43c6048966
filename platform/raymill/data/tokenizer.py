"""The tokenizer: trained on training text, or loaded; saved as a Hugging Face folder; encoding
with exact bytes.

Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) through HF `tokenizers`. `transformers`
isn't imported: the folder it reads is two small JSON files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raymill.config.schema import TokenizerConfig
from raymill.data.manifest import TokenizerIdentity, read_tokenizer
from raymill.durable import canonical_json, fsync_path, sha256_text, write_atomic
from raymill.errors import DataError
from raymill.reading import is_file, is_folder, read_bytes, read_json

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

SLICE_CHARACTERS = 1 << 18  # encoded at once: `tokenizers` needs some 100 bytes for each token
BATCH_CHARACTERS = 1 << 20
AUTO, END_OF_TEXT = "auto", "<|endoftext|>"
SETTINGS_NAME = "tokenizer_config.json"
# What a chat template may name beside the messages.
_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token")
COPIED = ("special_tokens_map.json", "chat_template.jinja", "added_tokens.json")


def train(texts: Iterator[str], config: TokenizerConfig) -> Tokenizer:
    """Learn a byte-level BPE; the same texts give the same tokenizer."""
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
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def end_of_text_of(config: TokenizerConfig) -> str:
    """The token that separates documents. `auto`: the eos_token that an existing tokenizer's folder names,
    or else `<|endoftext|>`."""
    if config.end_of_text != AUTO:
        return config.end_of_text
    named = {} if config.path is None else special_token_variables(read_settings(Path(config.path)))
    return named.get("eos_token", END_OF_TEXT)


def read_settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, or nothing where there is none.

    Raises:
        DataError: it isn't a JSON object.
        StorageError: it can't be read.
    """
    path = folder / SETTINGS_NAME
    settings = read_json(path, missing={})
    if not isinstance(settings, dict):
        raise DataError(f"{path} holds {type(settings).__name__}, expected an object.")
    return settings


def special_token_variables(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that a tokenizer's settings name, plain or as {"content": …}."""
    found = {}
    for name in _NAMED:
        value = settings.get(name)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            found[name] = text
    return found


def load(path: Path, end_of_text: str) -> Tokenizer:
    """Load a `tokenizer.json` or the folder that holds one.

    Raises:
        DataError: nothing there, not a tokenizer, or no special token `end_of_text`.
    """
    file = tokenizer_file(path)
    try:
        tokenizer = read_tokenizer(file)
    except DataError as error:
        raise DataError(f"tokenizer.path: {error}") from error
    # A file may carry training-time padding and truncation, which would silently cut documents.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    special = sorted(
        token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special
    )
    if end_of_text not in special:
        known = ", ".join(special[:12]) or "none"
        raise DataError(
            f"tokenizer.path: {file} has no special token {end_of_text!r}, which separates "
            f"documents; set tokenizer.end_of_text to one of its special tokens: {known}."
        )
    return tokenizer


def add_special_tokens(tokenizer: Tokenizer, tokens: Sequence[str]) -> None:
    """Make `tokens` special, adding those that the vocabulary lacks."""
    from tokenizers import AddedToken

    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens]
    )


def tokenizer_file(path: Path) -> Path:
    """The `tokenizer.json` that a path stands for; raises DataError if there is none."""
    file = path / "tokenizer.json" if is_folder(path) else path
    if not is_file(file):
        raise DataError(
            f"tokenizer.path: {file} doesn't exist; expected a tokenizer.json or a Hugging Face "
            "folder with one. Leave tokenizer.path out to train a tokenizer."
        )
    return file


def fingerprint(tokenizer: Tokenizer) -> str:
    """sha256 over canonical JSON, as `manifest.tokenizer_fingerprint` of the saved file."""
    return sha256_text(canonical_json(json.loads(tokenizer.to_str())))


def identity(tokenizer: Tokenizer, end_of_text: str) -> TokenizerIdentity:
    """What the manifest says about a tokenizer. The vocabulary's size is the largest id + 1."""
    token_id = tokenizer.token_to_id(end_of_text)
    if token_id is None:
        raise DataError(f"The tokenizer has no token {end_of_text!r}.")
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    return TokenizerIdentity(fingerprint(tokenizer), vocab_size, token_id)


def save(tokenizer: Tokenizer, folder: Path, end_of_text: str, source: Path | None = None) -> None:
    """Write a folder that `transformers.AutoTokenizer.from_pretrained` loads offline.

    End of text also serves as beginning and padding: rows start with it, and padding is masked by
    length. A loaded tokenizer's other settings (chat template, …) are kept from its `source`
    folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {}
    if source is not None and is_folder(source):
        for name in COPIED:
            if is_file(source / name):
                (folder / name).write_bytes(read_bytes(source / name))
        settings = read_settings(source)
    # A family's own class would build another tokenizer than tokenizer.json holds.
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.setdefault("clean_up_tokenization_spaces", False)
    for role in ("bos_token", "eos_token", "pad_token"):
        if settings.get(role) is None:
            settings[role] = end_of_text
    settings["eos_token"] = end_of_text
    # auto_map names code to run; none is taken over.
    settings.pop("auto_map", None)
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomic(folder / SETTINGS_NAME, text + "\n")
    write_atomic(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    fsync_path(folder)


@dataclass(frozen=True)
class Encoded:
    """A document's token ids [n] and UTF-8 bytes behind each [n], which add up to its text's."""

    ids: NDArray[np.uint32]
    token_bytes: NDArray[np.uint32]


class Encoder:
    """Encodes documents; special tokens that a text spells out are text, never control."""

    def __init__(self, tokenizer: Tokenizer, end_of_text_id: int) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True
        self._end_of_text_id = end_of_text_id
        self._byte_table = _byte_table(tokenizer)

    def encode(self, texts: Sequence[str]) -> Iterator[Encoded]:
        """Encode documents one after the other, in batches of bounded size.

        A long document is encoded in slices cut at line ends, so that memory stays bounded.

        Raises:
            DataError: the tokenizer makes its end-of-text token from ordinary text.
        """
        encoded = (
            result
            for batch in _batched(part for text in texts for part in _slices(text))
            for result in self._encode_slices(batch)
        )
        for text in texts:
            parts = [next(encoded) for _ in _slices(text)]
            yield Encoded(
                np.concatenate([part.ids for part in parts]),
                np.concatenate([part.token_bytes for part in parts]),
            )

    def _encode_slices(self, slices: Sequence[str]) -> Iterator[Encoded]:
        if self._byte_table is None:
            encodings = self._tokenizer.encode_batch(slices, add_special_tokens=False)
        else:
            encodings = self._tokenizer.encode_batch_fast(slices, add_special_tokens=False)
        for text, encoding in zip(slices, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.uint32)
            if np.any(ids == self._end_of_text_id):
                raise DataError(
                    "The tokenizer turns ordinary text into its end-of-text token, so documents "
                    f"couldn't be told apart. The text: {text[:80]!r}. Choose another "
                    "tokenizer.end_of_text."
                )
            yield Encoded(ids, self._bytes_of(text, ids, encoding))

    def _bytes_of(
        self, text: str, ids: NDArray[np.uint32], encoding: Encoding
    ) -> NDArray[np.uint32]:
        total = len(text.encode("utf-8"))
        if self._byte_table is not None:
            token_bytes = self._byte_table[ids]
            if int(token_bytes.sum(dtype=np.int64)) == total:
                return token_bytes
            # A normaliser or an unknown token changed the text; character offsets still tell.
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return _bytes_by_offsets(text, encoding.offsets, total)


def batches(texts: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Group (split, text) pairs into lists of about BATCH_CHARACTERS."""
    batch: list[tuple[str, str]] = []
    size = 0
    for pair in texts:
        batch.append(pair)
        size += len(pair[1])
        if size >= BATCH_CHARACTERS or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _slices(text: str) -> Iterator[str]:
    """Parts of at most SLICE_CHARACTERS, cut after a newline where there is one; "" gives ""."""
    start = 0
    while len(text) - start > SLICE_CHARACTERS:
        stop = text.rfind("\n", start, start + SLICE_CHARACTERS) + 1
        stop = stop if stop > start else start + SLICE_CHARACTERS
        yield text[start:stop]
        start = stop
    yield text[start:]


def _batched(slices: Iterator[str]) -> Iterator[list[str]]:
    """Lists of about BATCH_CHARACTERS."""
    batch: list[str] = []
    size = 0
    for part in slices:
        batch.append(part)
        size += len(part)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _byte_table(tokenizer: Tokenizer) -> NDArray[np.uint32] | None:
    """Bytes of text by id where the vocabulary is byte-level (one character a byte), else None.

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


def _bytes_by_offsets(
    text: str, offsets: Sequence[tuple[int, int]], total: int
) -> NDArray[np.uint32]:
    """Bytes behind each token by the character where it ends; what lies between tokens goes to the
    later one.

    The ends telescope, so the sum is exact whatever a normaliser dropped; the last token takes the
    rest.
    """
    if not offsets:
        return np.zeros(0, dtype=np.uint32)
    widths = np.fromiter((_utf8_width(character) for character in text), np.int64, len(text))
    byte_at = np.concatenate([[0], np.cumsum(widths)])
    ends = np.maximum.accumulate(np.array([stop for _, stop in offsets], dtype=np.int64))
    byte_ends = byte_at[ends]
    byte_ends[-1] = total
    return np.diff(byte_ends, prepend=0).astype(np.uint32)


def _utf8_width(character: str) -> int:
    code = ord(character)
    return 1 if code < 0x80 else 2 if code < 0x800 else 3 if code < 0x10000 else 4
