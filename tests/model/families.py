"""Tiny random models of the families that transformers knows, and what each of them can do here.

PYTHONPATH=platform:tests python tests/model/families.py [family …] prints the table of docs/families.md.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

VOCAB_SIZE = 64
# Numbers by the names that families have for them; what a family doesn't name stays its default.
SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCAB_SIZE),
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "attention_hidden_size",
         "lru_width", "embedding_size", "emb_dim", "dim_model", "decoder_hidden_size"), 32,
    ),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "decoder_ffn_dim", "d_inner", "dim_ff",
         "ffn_hidden_size", "intermediate_size_mlp", "mamba_d_ssm", "block_ff_dim",
         "dense_intermediate_size", "conv_dim", "decoder_intermediate_size"), 64,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers",
         "num_decoder_layers"), 2,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads",
         "decoder_attention_heads", "num_decoder_attention_heads"), 4,
    ),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "linear_num_key_heads"), 2),
    **dict.fromkeys(
        ("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "linear_key_head_dim",
         "linear_value_head_dim", "mamba_d_state", "mamba_d_head", "mamba_head_dim", "state_size",
         "ssm_state_size", "rotary_dim", "global_head_dim", "qk_head_dim", "index_head_dim",
         "query_pre_attn_scalar", "hidden_size_per_layer_input", "rnn_width", "kv_channels"), 8,
    ),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    **dict.fromkeys(("mamba_n_groups", "n_groups", "n_group", "topk_group", "mamba_ngroups"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "moe_intermediate_size", "mamba_dt_rank",
                     "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size",
                     "time_step_rank", "shared_intermediate_size", "o_lora_rank"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_experts_per_token"), 2),
    **dict.fromkeys(("first_k_dense_replace", "n_shared_experts", "moe_layer_start_index"), 1),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "max_seq_len", "context_length", "n_ctx"), 128
    ),
    **dict.fromkeys(("sliding_window", "window_size", "attention_chunk_size"), 4),
    **dict.fromkeys(("chunk_size", "mamba_chunk_size"), 8),
    **dict.fromkeys(("rescale_every",), 0),
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    **dict.fromkeys(("initializer_range", "init_std"), 0.2),
}  # fmt: skip


def small(cls: type, also: dict[str, Any]) -> Any:
    """A configuration of this class with small numbers, those of its parts too."""
    default = cls()
    names = {*default.to_dict(), *default.attribute_map}
    given = {name: value for name, value in SMALL.items() if name in names}
    for name in ("text_config", "decoder"):
        if name in cls.sub_configs and getattr(default, name, None) is not None:
            given[name] = small(type(getattr(default, name)), also.get(name, {})).to_dict()
    return cls(**given | also)


# What the names above don't tell.
ALSO: dict[str, dict[str, Any]] = {}


def build(family: str) -> Any:
    """A language model with random weights that make its logits differ, in fp32."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = small(CONFIG_MAPPING[family], ALSO.get(family, {}))
    torch.manual_seed(0)
    try:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    except ValueError:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.float().eval()


if __name__ == "__main__":
    import warnings, time
    warnings.simplefilter("ignore")
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as N
    for f in sys.argv[1:] or N:
        t=time.time()
        try:
            m = build(f); n=sum(p.numel() for p in m.parameters())
            print(f, "ok" if n<3e6 else "LARGE", n, f"{time.time()-t:.1f}", type(m).__name__, flush=True)
        except Exception as e: print(f, "FAIL", type(e).__name__, " ".join(str(e).split())[:150], flush=True)
