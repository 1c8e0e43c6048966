"""Tokenizers of every family, tiny and without a download, and folders that hold them.

Families differ in how they spell a space, in what they do with characters that they don't know, and in whether
a text that spells a special token could become one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    "Hello there, how are you today? The quick brown fox jumps over the lazy dog. It isn't the end.\n",
    "def f(x):\n    return x + 1\n\n\nWhat is two plus two?  Two plus two is four.\n",
] * 4
BOS, EOS, UNK, PAD = "<s>", "</s>", "<unk>", "<pad>"
SPECIAL = (UNK, BOS, EOS, PAD)
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def _special(tokens: tuple[str, ...] = SPECIAL) -> list[AddedToken]:
    return [AddedToken(token, special=True, normalized=False) for token in tokens]


def byte_level() -> Tokenizer:
    """As GPT-2, Llama 3 and Qwen: every byte has a token, and bytes are put together."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=_special(),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def byte_level_prefixed() -> Tokenizer:
    """As RoBERTa's and OPT's kin with `add_prefix_space`, words looked up whole (`ignore_merges`)."""
    tokenizer = byte_level()
    tree = json.loads(tokenizer.to_str())
    tree["pre_tokenizer"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False,
    }  # fmt: skip
    tree["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(tree))


def _sentencepiece_bpe() -> dict[str, Any]:
    """Merges that can spell `</s>`; bytes stand in for unknown characters."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(
        [*TEXTS, "<b> </b> <s" * 3],
        trainers.BpeTrainer(
            vocab_size=360, special_tokens=[*_special(), *BYTES], show_progress=False
        ),
    )
    tree: dict[str, Any] = json.loads(tokenizer.to_str())
    tree["added_tokens"] = [one for one in tree["added_tokens"] if one["content"] in SPECIAL]
    vocab, merges = tree["model"]["vocab"], tree["model"]["merges"]
    for left, right in (("<", "/"), ("s", ">"), ("</", "s>")):
        vocab.setdefault(left + right, len(vocab))
        if [left, right] not in merges:
            merges.append([left, right])
    tree["normalizer"] = tree["pre_tokenizer"] = None
    tree["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    return tree


def llama2() -> Tokenizer:
    """As Llama 2's file: a normalizer puts ▁ before every stretch of text, those after special tokens, too."""
    tree = _sentencepiece_bpe()
    tree["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ],
    }
    return Tokenizer.from_str(json.dumps(tree))


def metaspace(scheme: str) -> Tokenizer:
    """As newer files: ▁ is put before the first stretch, before every one, or before none (Gemma)."""
    tree = _sentencepiece_bpe()
    tree["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": scheme == "always",
    }  # fmt: skip
    if scheme == "never":
        tree["decoder"]["decoders"].pop()
    return Tokenizer.from_str(json.dumps(tree))


def unigram(byte_fallback: bool = False) -> Tokenizer:
    """As T5's and llm-jp's: the likeliest pieces, special tokens among them with the best score."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    if byte_fallback:
        tokenizer.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
        )
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(
            vocab_size=120, unk_token=UNK, special_tokens=_special(), show_progress=False
        ),
    )
    if not byte_fallback:
        return tokenizer
    tree = json.loads(tokenizer.to_str())
    tree["model"]["vocab"] += [[byte, -20.0] for byte in BYTES]
    tree["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(tree))


def word_piece() -> Tokenizer:
    """As BERT's, cut at spaces alone, so that a special token is a word like any other."""
    tokenizer = Tokenizer(models.WordPiece(unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.WordPieceTrainer(vocab_size=140, special_tokens=_special(), show_progress=False),
    )
    return tokenizer


def word_level() -> Tokenizer:
    """Whole words; no decoder: `tokenizers` puts a space between tokens."""
    words = dict.fromkeys(word for text in TEXTS for word in text.split())
    vocab = {word: index for index, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(_special())
    return tokenizer


def word_ends() -> Tokenizer:
    """As CLIP's and the first GPT's: the end of a word is marked, not its beginning."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]+"), "removed", invert=True)
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=200,
            special_tokens=_special(),
            end_of_word_suffix="</w>",
            show_progress=False,
        ),
    )
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "byte level, prefixed": byte_level_prefixed,
    "llama 2": llama2,
    "metaspace first": lambda: metaspace("first"),
    "metaspace always": lambda: metaspace("always"),
    "metaspace never": lambda: metaspace("never"),
    "unigram": unigram,
    "unigram with bytes": lambda: unigram(byte_fallback=True),
    "word pieces": word_piece,
    "words": word_level,
    "word ends": word_ends,
}


@cache
def _file(name: str) -> str:
    text: str = FAMILIES[name]().to_str()
    return text


def family(name: str) -> Tokenizer:
    """A copy of its own for whoever asks."""
    return Tokenizer.from_str(_file(name))


def beginning_with(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    """The tokenizer, whose post-processor now puts `tokens` before a text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*tokens, "$A"]),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens],
    )
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    """A Hugging Face folder: `tokenizer.json`, and `settings` as tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def names() -> Iterator[str]:
    yield from FAMILIES
