"""From an architecture's numbers to a transformers model, so that any Hugging Face tool can load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.causes import first_line
from raymill.errors import ConfigError
from raymill.model.quiet import config_of, model_of
from raymill.model.shape import SHAPE_KEYS
from raymill.redaction import override
from raymill.schema.sections import ArchConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# transformers' names of what an architecture's numbers leave to a family's defaults, or say by another name.
_COMPUTATION = (
    "model_type", "head_dim", "layer_norm_epsilon", "rms_norm_eps", "rope_parameters", "hidden_act",
    "activation_function", "attention_bias", "mlp_bias", "use_sliding_window", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "add_cross_attention",
)  # fmt: skip


def hugging_face_config(
    arch: ArchConfig, vocab_size: int, end_of_text_id: int | None
) -> PretrainedConfig:
    """The transformers configuration of a preset; `vocab_size` as resolved from the tokenizer."""
    from transformers import GPT2Config, LlamaConfig, Qwen3Config

    tokens = {"bos_token_id": end_of_text_id, "eos_token_id": end_of_text_id}
    if arch.family == "gpt2":
        return GPT2Config(
            vocab_size=vocab_size,
            n_positions=arch.max_positions,
            n_embd=arch.hidden_size,
            n_layer=arch.layers,
            n_head=arch.heads,
            n_inner=arch.intermediate_size,
            layer_norm_epsilon=arch.norm_eps,
            resid_pdrop=arch.dropout,
            embd_pdrop=arch.dropout,
            attn_pdrop=arch.dropout,
            tie_word_embeddings=arch.tied_embeddings,
            **tokens,
        )
    family = LlamaConfig if arch.family == "llama" else Qwen3Config
    return family(
        vocab_size=vocab_size,
        hidden_size=arch.hidden_size,
        intermediate_size=arch.intermediate_size,
        num_hidden_layers=arch.layers,
        num_attention_heads=arch.heads,
        num_key_value_heads=arch.kv_heads,
        head_dim=arch.head_dim or arch.hidden_size // arch.heads,
        max_position_embeddings=arch.max_positions,
        rms_norm_eps=arch.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": arch.rope_theta},
        tie_word_embeddings=arch.tied_embeddings,
        attention_dropout=arch.dropout,
        **tokens,
    )


def build_model(
    arch: ArchConfig, vocab_size: int, end_of_text_id: int | None, seed: int
) -> PreTrainedModel:
    """A freshly initialised fp32 model; the same seed gives the same weights on every rank."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = hugging_face_config(arch, vocab_size, end_of_text_id)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config,
        dtype=torch.float32,
        attn_implementation=arch.attention,
        trust_remote_code=False,
    )
    return model


def load_pretrained(
    folder: Path, arch: ArchConfig, vocab_size: int, end_of_text_id: int | None
) -> PreTrainedModel:
    """Weights to continue from, in fp32, in the very model that `build_model` makes: a resumed run and the
    export build it from `arch` alone.

    Raises:
        ConfigError: the folder's model has another shape than `arch`, computes something else, has another
        vocabulary, or needs code of its own.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        config = config_of(folder)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            [f"model={folder}: transformers can't load it: {first_line(error)}"]
        ) from error
    own = hugging_face_config(arch, vocab_size, end_of_text_id)
    problems = [
        f"arch.{key}={getattr(arch, key)}: the model in {folder} has {found}; choose its own arch="
        for key, found in _shape_of(config).items()
        if found != getattr(arch, key)
    ]
    problems += [
        f"model={folder}: its {key} is {found}, where arch={arch.name} has {getattr(own, key, None)}"
        for key, found in _computation_of(config).items()
        if found != getattr(own, key, None)
    ]
    if config.vocab_size < vocab_size:
        problems.append(
            f"model={folder}: its vocabulary of {config.vocab_size} is smaller than the data's "
            f"{vocab_size}; prepare the data with the model's tokenizer ({override('tokenizer.path', folder)})"
        )
    elif config.vocab_size > vocab_size:
        problems.append(
            f"model={folder}: its vocabulary of {config.vocab_size} has more room than {vocab_size}; set "
            f"arch.vocab_size={config.vocab_size}"
        )
    if problems:
        raise ConfigError(problems)
    model: PreTrainedModel = model_of(
        AutoModelForCausalLM,
        folder,
        config=own,
        dtype=torch.float32,
        attn_implementation=arch.attention,
    )
    return model


def _shape_of(config: Any) -> dict[str, Any]:
    """What decides which weights there are; positions may differ unless they are weights, too."""
    shape = {"tied_embeddings": config.tie_word_embeddings}
    for key, names in SHAPE_KEYS.items():
        found = [getattr(config, name, None) for name in names]
        value = next((one for one in found if one is not None), None)
        if value is not None and (key != "max_positions" or config.model_type == "gpt2"):
            shape[key] = value
    return shape


def _computation_of(config: Any) -> dict[str, Any]:
    """What decides, beside the shape, what a model computes; dropout is the run's."""
    found = {key: getattr(config, key) for key in _COMPUTATION if hasattr(config, key)}
    rope = found.get("rope_parameters")
    if rope is not None:
        found["rope_parameters"] = {key: value for key, value in rope.items() if value is not None}
    return found
