"""What a Hugging Face folder's config.json tells of a model's shape, without loading anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from raymill.config.schema import ArchConfig
from raymill.errors import ConfigError
from raymill.reading import MISSING, read_text

# transformers spells a shape differently in each family.
SHAPE_KEYS = {
    "hidden_size": ("hidden_size", "n_embd"),
    "layers": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "kv_heads": ("num_key_value_heads", "num_attention_heads", "n_head"),
    "intermediate_size": ("intermediate_size", "n_inner"),
    "max_positions": ("max_position_embeddings", "n_positions"),
}
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
    """How many positions the model has, if it says so."""
    found = _first(read_config(folder), SHAPE_KEYS["max_positions"])
    return None if found is None else int(found)


def shape_of(folder: Path) -> ArchConfig | None:
    """The parent's architecture for the plan, families that we don't know counted as Llama's; None if
    config.json doesn't tell enough."""
    config = read_config(folder)
    numbers = {key: _first(config, names) for key, names in SHAPE_KEYS.items()}
    if numbers["intermediate_size"] is None and numbers["hidden_size"] is not None:
        numbers["intermediate_size"] = 4 * numbers["hidden_size"]  # GPT-2's default
    if any(value is None for value in numbers.values()) or "vocab_size" not in config:
        return None
    kind = str(config.get("model_type", ""))
    family = kind if kind in FAMILIES else "llama"
    known: dict[str, Any] = {key: int(value) for key, value in numbers.items()}
    rope = config.get("rope_parameters") or config
    # Where nothing is said, transformers' defaults hold.
    epsilon = _first(config, ("rms_norm_eps", "layer_norm_epsilon"))
    return ArchConfig(
        name=kind,
        family=family,  # type: ignore[arg-type]
        head_dim=config.get("head_dim"),
        vocab_size=int(config["vocab_size"]),
        tied_embeddings=bool(config.get("tie_word_embeddings", kind == "gpt2")),
        rope_theta=float(rope.get("rope_theta", 10_000.0)),
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
    if kind not in FAMILIES or arch is None:
        raise ConfigError(
            [
                f"arch=from_model: {folder / 'config.json'} describes a model of type {kind}; whole "
                f"descriptions of {', '.join(FAMILIES)} can be continued"
            ]
        )
    return arch


def _first(config: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)
