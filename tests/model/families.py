"""Tiny random models of the families that transformers knows, and what each of them can do here.

PYTHONPATH=platform:tests python tests/model/families.py [family …] prints the table of docs/families.md.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from data.prepared_factory import _write_tokenizer
from raymill.data.text.control_tokens import ControlTokens
from raymill.engine.build_models import flops_per_token
from raymill.engine.group import WorkerGroup
from raymill.engine.leaks import refuse_leaks, sees_ahead
from raymill.errors import RaymillError
from raymill.generate.modes import mode_of
from raymill.model.blueprint import Blueprint
from raymill.model.export import save_model
from raymill.model.loading import silence_libraries
from raymill.model.parent import plan_parent, with_adapters
from raymill.objective.forward import Sequences, run_model
from raymill.schema.sections import LoraConfig
from sections import plain

CPU = torch.device("cpu")
SECONDS = 40  # for a family
LENGTH = 16  # tokens of a row
VOCAB_SIZE = 64
SOME = ("in_proj",)  # adapters where peft refuses others
NEW_IDS = (VOCAB_SIZE, VOCAB_SIZE + 1)
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
    """Return a configuration of this class with small numbers, also in its parts."""
    default = cls()
    names = {*default.to_dict(), *default.attribute_map}
    given = {name: value for name, value in SMALL.items() if name in names}
    if "kv_lora_rank" in names:  # latent attention has no groups of heads
        given["num_key_value_heads"] = SMALL["num_attention_heads"]
    parts = {"text_config", "decoder"} & {*cls.sub_configs}
    for name in sorted(parts):
        if getattr(default, name, None) is not None:
            given[name] = small(type(getattr(default, name)), also.get(name, {})).to_dict()
    return cls(**given | {name: value for name, value in also.items() if name not in parts})


# What the names above don't tell.
LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
CONVOLVED = {"layer_types": ["conv", "full_attention"]}
SHARED = {
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
    "attention_hidden_size": 64, "attention_head_dim": 16,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 28}  # fmt: skip
ALSO: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "dots3_note_text": {"num_key_value_heads": 4},
    "gemma3": {"vision_config": VISION},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "use_mamba_kernels": False,
    },
    "lfm2": CONVOLVED,
    "lfm2_moe": CONVOLVED | {"num_dense_layers": 1},
    "mamba2": {"num_heads": 8},
    "nemotron_h": {"hybrid_override_pattern": "M*-", "num_hidden_layers": 3},
    "qwen3_5": {"text_config": LINEAR}, "qwen3_5_moe": {"text_config": LINEAR},
    "qwen3_5_text": LINEAR, "qwen3_5_moe_text": LINEAR,
    "qwen3_next": LINEAR,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True},
    "granitemoehybrid": LINEAR,
    "zamba": SHARED, "zamba2": SHARED,
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


def build(family: str, **also: Any) -> Any:
    """Build a language model with random weights, in fp32."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = small(CONFIG_MAPPING[family], ALSO.get(family, {}) | also)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        config, attn_implementation=attention_of(family)
    ).float()


def attention_of(family: str) -> str:
    """Return the default kernel, if the family has it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return "sdpa" if MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]]._supports_sdpa else "eager"


@dataclass(frozen=True)
class Able:
    """Return a family's support: "yes", or the limitation and its reason."""

    trains: str
    packs: str
    samples: str
    lora: str
    exports: str

    def row(self, family: str) -> str:
        """Format the family's row of the table in docs/families.md."""
        cells = (f"`{family}`", self.trains, self.packs, self.samples, self.lora, self.exports)
        return f"| {' | '.join(cells)} |"


def tried(family: str, folder: Path) -> Able:
    """Make a parent of this family in `folder`, and pass it through the steps of the jobs."""
    build(family).save_pretrained(folder / "parent")
    (folder / "tokenizer").mkdir()
    _write_tokenizer(folder / "tokenizer", 257)

    def planned() -> Blueprint:
        return plan_parent(folder / "parent", VOCAB_SIZE + 2, NEW_IDS, attention_of(family), 7)

    def parent() -> Any:
        return planned().whole()

    def adapted(*targets: str) -> Blueprint:
        lora = plain(LoraConfig, rank=2, targets=targets)
        return with_adapters(planned(), lora, NEW_IDS, 7)

    def all_adapted() -> str:
        return _learns(adapted("all-linear").whole()) and _exports(adapted("all-linear"), folder)

    def some_adapted() -> str:
        _learns(adapted(*SOME).whole()) and _exports(adapted(*SOME), folder)
        return f"with `lora.targets=[{','.join(SOME)}]`"

    lora = _answer(all_adapted)
    return Able(
        trains=_answer(lambda: _learns(parent())),
        packs=_answer(lambda: _packs(parent())),
        samples=_answer(lambda: _samples(parent())),
        lora=lora if lora == "yes" else _answer(some_adapted),
        exports=_answer(lambda: _exports(planned(), folder)),
    )


def _answer(work: Callable[[], str]) -> str:
    try:
        return work()
    except RaymillError:  # in a sentence
        return "no"
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001  (what goes wrong is what is asked)
        return f"no: {type(error).__name__}: {' '.join(str(error).split())[:80]}"


def _learns(model: Any) -> str:
    """Return True if a text is learned in a few steps through the objectives' passes, and not copied."""
    if sees_ahead(model.eval(), model.get_output_embeddings(), False, CPU) > 1e-5:
        return "no: tokens see those that follow"
    tokens_BT = torch.arange(5, 5 + 2 * LENGTH).view(2, LENGTH)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    assert flops_per_token(model, LENGTH, 1.0) > 0
    losses = []
    model.train()
    for _ in range(6):
        logits = run_model(model, Sequences.from_tokens(tokens_BT[:, :-1]), CPU).logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), tokens_BT[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return "yes" if losses[-1] < losses[0] - 0.1 else "no: the loss doesn't fall"


def _packs(model: Any) -> str:
    refuse_leaks(
        model, model.get_output_embeddings(), "data.packing", "attention", "fp32", WorkerGroup(CPU)
    )
    return "yes"


def _samples(model: Any) -> str:
    mode = mode_of(model)
    if not mode.why:
        return "in batches"
    slow = ("" if mode.batched else "row by row", "" if mode.cached else "without a cache")
    return ", ".join(filter(None, slow))


def _exports(blueprint: Blueprint, folder: Path) -> str:
    save_model(
        blueprint.lazy(), folder / "tokenizer", folder / "export", precision="fp32",
        tokens=ControlTokens(None, 0, (2,)), probe_ids=[list(range(5, 5 + LENGTH))],
    )  # fmt: skip
    return "yes"


def main(families: list[str]) -> None:
    """Print the rows of these families, each within a time limit."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    silence_libraries()
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _out_of_time)
    for family in families or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        signal.alarm(SECONDS)
        try:
            with tempfile.TemporaryDirectory() as folder:
                print(tried(family, Path(folder)).row(family), flush=True)
        except Exception as error:  # noqa: BLE001  (it can't be made)
            print(
                f"{family}: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
                flush=True,
            )
        signal.alarm(0)


def _out_of_time(*_: object) -> None:
    raise TimeoutError


if __name__ == "__main__":
    main(sys.argv[1:])
