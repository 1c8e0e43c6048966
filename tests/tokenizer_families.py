"""Tiny tokenizers of every family, without downloads, and folders that hold them.

Families differ in their spelling of a space, in their treatment of unknown characters, and in whether text
that spells a special token can become that token.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
    """Return a tokenizer like those of GPT-2, Llama 3 and Qwen: byte-level BPE."""
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
    """Return byte-level BPE with `add_prefix_space` and `ignore_merges`, as in relatives of RoBERTa and OPT."""
    tokenizer = byte_level()
    tree = json.loads(tokenizer.to_str())
    tree["pre_tokenizer"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False,
    }  # fmt: skip
    tree["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(tree))


def _sentencepiece_bpe() -> dict[str, Any]:
    """Return the file of a BPE with byte fallback whose merges can spell `</s>`."""
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
    tree["added_tokens"] = [t for t in tree["added_tokens"] if t["content"] in SPECIAL]
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
    """Return a tokenizer like Llama 2's: ▁ before every segment of text, also after special tokens."""
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
    """Return a tokenizer like newer ones: ▁ before the first segment, before every one, or none (Gemma)."""
    tree = _sentencepiece_bpe()
    tree["pre_tokenizer"] = {
        "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": scheme == "always",
    }  # fmt: skip
    if scheme == "never":
        tree["decoder"]["decoders"].pop()
    return Tokenizer.from_str(json.dumps(tree))


def unigram(byte_fallback: bool = False) -> Tokenizer:
    """Return a unigram tokenizer like T5's and llm-jp's, with special tokens as the best-scored pieces."""
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
    """Return a tokenizer like BERT's that splits at spaces only, so a special token is an ordinary word."""
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
    """Return a word-level tokenizer without a decoder: `tokenizers` puts a space between tokens."""
    words = dict.fromkeys(word for text in TEXTS for word in text.split())
    vocab = {word: index for index, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(_special())
    return tokenizer


def word_ends() -> Tokenizer:
    """Return a tokenizer like CLIP's and GPT-1's, which marks the end of a word instead of its start."""
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
    """Return a new copy of a family's tokenizer."""
    return Tokenizer.from_str(_file(name))


def beginning_with(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    """Return the tokenizer with a post-processor that puts `tokens` before a text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*tokens, "$A"]),
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in tokens],
    )
    return tokenizer


def write_folder(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    """Write a Hugging Face folder: tokenizer.json, and `settings` as tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
