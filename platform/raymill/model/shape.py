"""Shape of a model, read from its Hugging Face folder's config.json without loading anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from raymill.errors import ConfigError
from raymill.reading import MISSING, read_text
from raymill.schema.sections import ArchConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig


# The content of config.json, or transformers' object made of it.
Config: TypeAlias = "PretrainedConfig | Mapping[str, Any]"

# Each family of transformers has its own names for these numbers.
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
SHAPE_KEYS = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "n_embed"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": _HEADS,
    "kv_heads": ("num_key_value_heads", *_HEADS),
    "intermediate_size": ("intermediate_size", "n_inner", "ffn_dim"),
    "max_positions": (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "max_seq_length",
        "max_seq_len",
        "model_max_length",
        "seq_length",
        "seq_len",
        "context_length",
        "n_ctx",
        "max_target_positions",
    ),
}
NO_LIMIT = 2**31  # stands for the positions of a model without a limit
# Multimodal models have their language model's numbers in a nested part.
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "decoder", "generator")
# Families that an architecture's numbers describe completely.
FAMILIES = ("gpt2", "llama", "qwen3")


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json of a Hugging Face folder.

    Raises:
        ConfigError: the file is missing or isn't JSON.
        StorageError: the file can't be read.
    """
    path = folder / "config.json"
    try:
        config = json.loads(read_text(path))
    except (*MISSING, ValueError) as error:
        raise ConfigError([f"parent: {path} can't be read as JSON ({error})"]) from error
    return config if isinstance(config, dict) else {}


def is_reward_model(folder: Path) -> bool:
    """Return True if the folder holds a reward model: transformers' sequence classifier."""
    names = read_config(folder).get("architectures") or [""]
    return str(names[0]).endswith("ForSequenceClassification")


def context_length_of(folder: Path) -> int | None:
    """Return the context length of the model in a folder; see `context_length`."""
    return context_length(read_config(folder))


def context_length(config: Config) -> int | None:
    """Return the number of tokens that a model reads at most.

    None if it has no limit, as with ALiBi or a recurrent state, or states none.
    """
    positions = first_number(config, SHAPE_KEYS["max_positions"])
    return int(positions) if positions is not None and positions > 0 else None


def first_number(config: Config, names: tuple[str, ...]) -> float | None:
    """Return the first of these numbers that a configuration has; None if it has none of them.

    Those of a nested language model come first. Where layers differ, the largest number counts.
    """
    # In the stored form, since some of transformers' attributes raise where layers differ.
    whole = config.to_dict() if hasattr(config, "to_dict") else config
    whole = whole if isinstance(whole, dict) else vars(whole)
    # The language model's numbers are those that matter for text.
    texts = [whole[name] for name in _TEXT_PARTS if isinstance(whole.get(name), dict)]
    for part in (*texts[:1], whole):
        for name in names:
            value = part.get(name)
            # Some families have a number per layer; memory is planned for the largest.
            if isinstance(value, list):
                value = max(
                    (entry for entry in value if isinstance(entry, int | float)), default=None
                )
            if isinstance(value, int | float):
                return value
    return None


def cache_numbers(config: Config) -> int:
    """Return how many numbers the keys and values of a token have in all layers; 1 if the model doesn't tell.

    Layers count as if all of them attended to all positions.
    """

    def number(key: str) -> int:
        return int(first_number(config, SHAPE_KEYS[key]) or 0)

    heads = number("heads")
    size = first_number(config, ("head_dim",)) or number("hidden_size") / max(1, heads)
    return max(1, int(2 * number("layers") * number("kv_heads") * size))


def architecture_of(folder: Path) -> ArchConfig | None:
    """Return the parent's architecture for the plan; None if config.json lacks a number.

    An unknown family counts as Llama's.
    """
    config = read_config(folder)
    numbers = {key: first_number(config, names) for key, names in SHAPE_KEYS.items()}
    numbers["max_positions"] = context_length(config) or NO_LIMIT
    if numbers["intermediate_size"] is None and numbers["hidden_size"] is not None:
        # GPT-2's default.
        numbers["intermediate_size"] = 4 * numbers["hidden_size"]
    vocab_size, head_dim = (
        first_number(config, ("vocab_size",)),
        first_number(config, ("head_dim",)),
    )
    if vocab_size is None or any(value is None for value in numbers.values()):
        return None
    kind = str(config.get("model_type", ""))
    # Most families are variants of Llama's block, so its counts are a good estimate.
    family = kind if kind in FAMILIES else "llama"
    known: dict[str, Any] = {key: int(value) for key, value in numbers.items() if value is not None}
    rope = config.get("rope_parameters") or config
    # transformers' defaults hold for what config.json doesn't state.
    epsilon = first_number(config, ("rms_norm_eps", "layer_norm_epsilon"))
    return ArchConfig(
        name=kind,
        family=family,  # type: ignore[arg-type]
        head_dim=None if head_dim is None else int(head_dim),
        vocab_size=int(vocab_size),
        tied_embeddings=bool(config.get("tie_word_embeddings", kind == "gpt2")),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
        dropout=0.0,
        attention="sdpa",
        norm_eps=float(epsilon or (1e-5 if kind == "gpt2" else 1e-6)),
        **known,
    )


def own_architecture(folder: Path) -> ArchConfig:
    """Return the architecture of a model to continue.

    Raises:
        ConfigError: its family isn't one of `FAMILIES`, or config.json lacks a number.
    """
    kind = read_config(folder).get("model_type")
    arch = architecture_of(folder)
    if kind not in FAMILIES or arch is None or arch.max_positions == NO_LIMIT:
        raise ConfigError(
            [
                f"arch=from_model: {folder / 'config.json'} describes a model of type {kind}; whole "
                f"descriptions of {', '.join(FAMILIES)} can be continued"
            ]
        )
    return arch
