"""Construction of transformers models from an architecture's numbers, which any Hugging Face tool can load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from raymill.causes import first_line
from raymill.errors import ConfigError
from raymill.model.loading import load_hf_blueprint, load_hf_config
from raymill.model.shape import SHAPE_KEYS
from raymill.redaction import override
from raymill.schema.sections import ArchConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from raymill.model.blueprint import Blueprint

# Settings, by transformers' names, that an architecture leaves to its family's defaults or has another name
# for.
_COMPUTATION = (
    "model_type", "head_dim", "layer_norm_epsilon", "rms_norm_eps", "rope_parameters", "hidden_act",
    "activation_function", "attention_bias", "mlp_bias", "use_sliding_window", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "add_cross_attention",
)  # fmt: skip


def hugging_face_config(
    arch: ArchConfig, vocab_size: int, end_of_text_id: int | None
) -> PretrainedConfig:
    """Return the transformers configuration of a preset; `vocab_size` is resolved from the tokenizer."""
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


def plan_model(
    arch: ArchConfig, vocab_size: int, end_of_text_id: int | None, seed: int
) -> Blueprint:
    """Plan a freshly initialized model; the same seed gives the same weights on every rank.

    Each parameter has the distribution from which transformers would draw it.
    """
    config = hugging_face_config(arch, vocab_size, end_of_text_id)
    return plan_initial(config, seed, arch.attention)


def plan_initial(config: PretrainedConfig, seed: int, attention: str | None = None) -> Blueprint:
    """Plan a freshly initialized language model of any family."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_tie_weights

    from raymill.model.blueprint import Blueprint, with_real_buffers
    from raymill.model.trace import Trace

    # Tied after the initialization, as transformers does, or the output's would overwrite the padding row.
    with torch.device("meta"), no_tie_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=False,
        )
    trace = Trace()
    with_real_buffers(model, trace)
    with trace.recording():
        model.initialize_weights()
    model.tie_weights()
    return Blueprint.traced(model, trace, seed)


def build_model(
    arch: ArchConfig, vocab_size: int, end_of_text_id: int | None, seed: int
) -> PreTrainedModel:
    """Build what `plan_model` plans, whole, in fp32 on the host."""
    return plan_model(arch, vocab_size, end_of_text_id, seed).whole()


def plan_pretrained(
    folder: Path, arch: ArchConfig, vocab_size: int, end_of_text_id: int | None
) -> Blueprint:
    """Plan the same model as `plan_model` does, with a folder's weights, in fp32.

    The folder's own configuration isn't used, since a resumed run and the export build the model from `arch`.

    Raises:
        ConfigError: the folder's model has another shape than `arch`, computes something else, has another
            vocabulary, or needs code of its own.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        config = load_hf_config(folder)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            [f"model={folder}: transformers can't load it: {first_line(error)}"]
        ) from error
    # Compared setting by setting, so that all contradictions are reported at once.
    own = hugging_face_config(arch, vocab_size, end_of_text_id)
    problems = [
        f"arch.{key}={getattr(arch, key)}: the model in {folder} has {value}; choose its own arch="
        for key, value in _shape_of(config).items()
        if value != getattr(arch, key)
    ]
    problems += [
        f"model={folder}: its {key} is {value}, where arch={arch.name} has {getattr(own, key, None)}"
        for key, value in _computation_of(config).items()
        if value != getattr(own, key, None)
    ]
    if config.vocab_size < vocab_size:
        problems.append(
            f"model={folder}: its vocabulary of {config.vocab_size} is smaller than the data's "
            f"{vocab_size}; prepare the data with the model's tokenizer ({override('tokenizer.path', folder)})"
        )
    elif config.vocab_size > vocab_size:
        problems.append(
            f"model={folder}: its vocabulary of {config.vocab_size} is larger than the data's {vocab_size}; "
            f"set arch.vocab_size={config.vocab_size}"
        )
    if problems:
        raise ConfigError(problems)
    return load_hf_blueprint(
        AutoModelForCausalLM,
        folder,
        # Nothing is drawn: a folder that lacks weights is refused.
        seed=0,
        config=own,
        dtype=torch.float32,
        attn_implementation=arch.attention,
    )


def load_pretrained(
    folder: Path, arch: ArchConfig, vocab_size: int, end_of_text_id: int | None
) -> PreTrainedModel:
    """Load what `plan_pretrained` plans, whole, on the host."""
    return plan_pretrained(folder, arch, vocab_size, end_of_text_id).whole()


def _shape_of(config: PretrainedConfig) -> dict[str, object]:
    """Return the settings that decide the weights' shapes.

    The number of positions decides them only where positions have weights, as in GPT-2.
    """
    shape: dict[str, object] = {"tied_embeddings": config.tie_word_embeddings}
    for key, names in SHAPE_KEYS.items():
        values = (getattr(config, name, None) for name in names)
        value = next((value for value in values if value is not None), None)
        # Rotary positions have no weights, so another number of them changes no shape.
        if value is not None and (key != "max_positions" or config.model_type == "gpt2"):
            shape[key] = value
    return shape


def _computation_of(config: PretrainedConfig) -> dict[str, object]:
    """Return the settings besides the shape that decide a model's output; dropout is set by the run."""
    settings = {key: getattr(config, key) for key in _COMPUTATION if hasattr(config, key)}
    rope = settings.get("rope_parameters")
    if rope is not None:
        settings["rope_parameters"] = {
            key: value for key, value in rope.items() if value is not None
        }
    return settings
