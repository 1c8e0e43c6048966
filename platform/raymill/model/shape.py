"""What a Hugging Face folder's config.json tells of a model's shape, without loading anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raymill.errors import ConfigError
from raymill.reading import MISSING, read_text
from raymill.schema.sections import ArchConfig

# transformers spells a shape differently in each family.
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
NO_LIMIT = 2**31  # positions of a model that has as many as it is asked for
# Models that see or hear have their language model's numbers in a part of their own.
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "decoder", "generator")
FAMILIES = ("gpt2", "llama", "qwen3")  # that an architecture's numbers describe whole


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a Hugging Face folder.

    Raises:
        ConfigError: there is none, or it isn't JSON.
        StorageError: it can't be read.
    """
    path = folder / "config.json"
    try:
        found = json.loads(read_text(path))
    except (*MISSING, ValueError) as error:
        raise ConfigError([f"parent: {path} can't be read as JSON ({error})"]) from error
    return found if isinstance(found, dict) else {}


def gives_a_number(folder: Path) -> bool:
    """Whether the folder holds a reward model: transformers' sequence classifier."""
    names = read_config(folder).get("architectures") or [""]
    return str(names[0]).endswith("ForSequenceClassification")


def positions_of(folder: Path) -> int | None:
    """Return how many positions the model in a folder has; see `context_length`."""
    return context_length(read_config(folder))


def context_length(config: Any) -> int | None:
    """The tokens that a model reads at most, by transformers' configuration or config.json's content. None: it
    has no limit, as with ALiBi or a recurrent state, or tells of none."""
    found = named(config, SHAPE_KEYS["max_positions"])
    return int(found) if found is not None and found > 0 else None


def named(config: Any, names: tuple[str, ...]) -> float | None:
    """The first of these numbers that a configuration has, its language model's before its own; None: it has
    none. Where layers differ, the largest."""
    # As it is stored: some of transformers' attributes raise where layers differ.
    whole = config.to_dict() if hasattr(config, "to_dict") else config
    whole = whole if isinstance(whole, dict) else vars(whole)
    texts = [whole[name] for name in _TEXT_PARTS if isinstance(whole.get(name), dict)]
    for part in (*texts[:1], whole):
        for name in names:
            value = part.get(name)
            if isinstance(value, list):
                value = max((one for one in value if isinstance(one, int | float)), default=None)
            if isinstance(value, int | float):
                return value
    return None


def shape_of(folder: Path) -> ArchConfig | None:
    """The parent's architecture for the plan, families that we don't know counted as Llama's; None if
    config.json doesn't tell enough."""
    config = read_config(folder)
    numbers = {key: named(config, names) for key, names in SHAPE_KEYS.items()}
    numbers["max_positions"] = context_length(config) or NO_LIMIT
    if numbers["intermediate_size"] is None and numbers["hidden_size"] is not None:
        numbers["intermediate_size"] = 4 * numbers["hidden_size"]  # GPT-2's default
    vocab_size, head_dim = named(config, ("vocab_size",)), named(config, ("head_dim",))
    if vocab_size is None or any(value is None for value in numbers.values()):
        return None
    kind = str(config.get("model_type", ""))
    family = kind if kind in FAMILIES else "llama"
    known: dict[str, Any] = {key: int(value) for key, value in numbers.items() if value is not None}
    rope = config.get("rope_parameters") or config
    # Where nothing is said, transformers' defaults hold.
    epsilon = named(config, ("rms_norm_eps", "layer_norm_epsilon"))
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
    """The architecture of a model to continue.

    Raises:
        ConfigError: its family isn't one of `FAMILIES`, or config.json doesn't tell enough.
    """
    kind = read_config(folder).get("model_type")
    arch = shape_of(folder)
    if kind not in FAMILIES or arch is None or arch.max_positions == NO_LIMIT:
        raise ConfigError(
            [
                f"arch=from_model: {folder / 'config.json'} describes a model of type {kind}; whole "
                f"descriptions of {', '.join(FAMILIES)} can be continued"
            ]
        )
    return arch
