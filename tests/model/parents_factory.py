"""Tiny random parents of several families, with special tokens in the roles of published models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from raymill.data.messages.tokenizer import chat_tokenizer
from raymill.data.store.manifest import TOKENIZER_FOLDER, PreparedData
from raymill.data.text.control_tokens import ControlTokens

CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
EOS = (
    "{%- for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'assistant: ' }}{%- endif %}"
)
# As Phi's: turns end with one token, the text with another that the template knows by its role.
BOTH = (
    "{%- for m in messages %}{{ m.role + '\\n' + m.content + '<|end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ 'assistant\\n' }}{% else %}{{ eos_token }}{%- endif %}"
)
SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_new_tokens": 40}

# (special tokens in the order of their ids, what tokenizer_config.json names, template, ids that end, settings)
SPECIALS: dict[str, tuple[tuple[str, ...], dict[str, str], str, Any, dict[str, Any]]] = {
    "one": (("</s>",), {"eos_token": "</s>", "pad_token": "</s>"}, EOS, 0, {}),
    "several": (
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eom|>"),
        {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}, CHATML, [0, 3, 2], SAMPLED,
    ),
    "pad=eos": (
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}, CHATML, [2, 0], {},
    ),
    "no pad": (
        ("<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>"}, "{{ bos_token }}" + EOS, 1,
        {"temperature": 0.6},  # without do_sample, which transformers reads but doesn't save
    ),
    "pad=unk": (
        ("<unk>", "<s>", "</s>"),
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"},
        "{{ bos_token }}" + EOS, 2, {},
    ),
    "own pad": (
        ("<pad>", "<eos>", "<|end|>"), {"eos_token": "<eos>", "pad_token": "<pad>"}, BOTH, [1, 2], {},
    ),
}  # fmt: skip
FAMILIES = ("llama", "qwen3", "gpt2", "gemma3", "bloom")


def write_parent(folder: Path, family: str, specials: str) -> Path:
    """Write a parent of that family with those special tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens, named, template, ends, settings = SPECIALS[specials]
    vocab_size = _write_tokenizer(folder, tokens, {**named, "chat_template": template})
    torch.manual_seed(3)
    config = _config(family, vocab_size, ends)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    if settings:
        body = {**settings, "eos_token_id": ends}
        (folder / "generation_config.json").write_text(json.dumps(body))
    return folder


def _config(family: str, vocab_size: int, ends: Any) -> Any:
    from transformers import (
        BloomConfig,
        Gemma3TextConfig,
        GPT2Config,
        LlamaConfig,
        Qwen3Config,
    )

    ids = {
        "vocab_size": vocab_size,
        "bos_token_id": None,
        "eos_token_id": ends,
        "pad_token_id": None,
    }
    if family == "gpt2":
        return GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=128, **ids)
    if family == "bloom":
        return BloomConfig(hidden_size=32, n_layer=2, n_head=4, **ids)
    kinds = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma3": Gemma3TextConfig}
    return kinds[family](
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, **ids,
    )  # fmt: skip


def _write_tokenizer(folder: Path, tokens: Sequence[str], settings: dict[str, Any]) -> int:
    """Build a byte tokenizer with the special tokens first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    symbols = (*tokens, *sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = Tokenizer(
        models.BPE(vocab={text: index for index, text in enumerate(symbols)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    body = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(body))
    return len(symbols)


def prepared_with(parent: Path, folder: Path) -> tuple[PreparedData, ControlTokens]:
    """Write the parts of a prepared folder that an export reads: the tokenizer, and its tokens' roles."""
    made = chat_tokenizer(parent, "auto", ())
    made.save(folder / TOKENIZER_FOLDER)
    manifest = SimpleNamespace(
        tokenizer=made.identity, messages=SimpleNamespace(end_of_turn_id=made.end_of_turn_id)
    )
    prepared = PreparedData(folder, manifest)  # type: ignore[arg-type]
    return prepared, ControlTokens.from_prepared(prepared, parent)
