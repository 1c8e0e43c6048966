"""Tokenizers and chat templates of several kinds, small and without a download."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_TOKENS = (
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
ZEPHYR_TOKENS = ("<s>", "</s>")

QWEN = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)


def byte_level(special: Sequence[str] = CHATML_TOKENS) -> Tokenizer:
    """One token a byte, no merges; the special tokens come first."""
    symbols = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {text: index for index, text in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    return _finished(tokenizer, special)


def merging(special: Sequence[str] = CHATML_TOKENS) -> Tokenizer:
    """Byte-level with merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = ["user assistant system\n\nthe cat sat on the mat, <|im_end|> größer\n"] * 30
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(iter(texts), trainer)
    return _finished(tokenizer, special)


def prefix_space(special: Sequence[str] = ZEPHYR_TOKENS) -> Tokenizer:
    """Return a tokenizer like Llama 2's: a space before a text, and bytes for unknown characters."""
    symbols = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
    symbols += [*"▁abcdefghijklmnopqrstuvwxyz|<>?!", "▁x", "hy"]
    vocab = {text: index for index, text in enumerate(dict.fromkeys(symbols))}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab, merges=[("▁", "x"), ("h", "y")], unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def transformers_tokenizer(tokenizer: Tokenizer, template: str, **named: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    loaded = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named
    )
    loaded.chat_template = template
    return loaded


def _finished(tokenizer: Tokenizer, special: Sequence[str]) -> Tokenizer:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer
