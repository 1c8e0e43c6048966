"""Parameter counts and training FLOPs of the architecture presets, in closed form.

FLOPs are counted as in the literature: 6·N + 12·L·H·Q·T per token (PaLM, Chowdhery et al. 2022, appendix B),
with N parameters in matrix products (blocks and output matrix, without embedding look-ups), L layers, H heads,
Q head width, T sequence length. Attention is counted in full although it is causal, and activation
recomputation isn't counted: this is the numerator of model FLOPs utilization (MFU), not of hardware
utilization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raymill.schema.sections import ArchConfig


@dataclass(frozen=True)
class ParameterCount:
    """Trainable parameters, tied ones once."""

    embedding: int  # token (and learned position) embeddings
    blocks: int
    matrices: tuple[tuple[int, int, int], ...]  # of the blocks: rows, columns, count
    output: int  # the output matrix, whether or not it is tied to the embedding
    tied: bool

    @property
    def head(self) -> int:
        """Output matrix, if it is a parameter of its own."""
        return 0 if self.tied else self.output

    @property
    def total(self) -> int:
        return self.embedding + self.blocks + self.head

    @property
    def in_block_matrices(self) -> int:
        """Parameters that Muon trains, if it is the optimizer."""
        return sum(rows * columns * count for rows, columns, count in self.matrices)

    @property
    def largest(self) -> int:
        """Elements of the largest parameter, where positions aren't learned: an embedding or a matrix."""
        return max(self.output, *(rows * columns for rows, columns, _ in self.matrices))

    @property
    def in_matrix_products(self) -> int:
        """N of 6·N·D: the blocks and the output matrix, tied or not; no embedding look-ups."""
        return self.blocks + self.output


def head_dim(arch: ArchConfig) -> int:
    """Return the width of one attention head."""
    return arch.head_dim or arch.hidden_size // arch.heads


def count_parameters(arch: ArchConfig, vocab_size: int) -> ParameterCount:
    """Count the parameters of `arch` with a vocabulary of `vocab_size`.

    GPT-2: Radford et al. 2019 (biases, learned positions). Llama: Touvron et al. 2023. Qwen3 adds
    norms of width head_dim to queries and keys.
    """
    hidden, inner = arch.hidden_size, arch.intermediate_size
    query, key_value = arch.heads * head_dim(arch), arch.kv_heads * head_dim(arch)
    output = vocab_size * hidden
    if arch.family == "gpt2":
        # Queries, keys and values are one matrix; then the output, and two of the MLP.
        matrices = ((3 * hidden, hidden, 1), (hidden, hidden, 1), (inner, hidden, 2))
        vectors = 3 * hidden + hidden + inner + hidden + 4 * hidden
        final_norm = 2 * hidden
        embedding = output + arch.max_positions * hidden
    else:
        # Queries and output, keys and values, and the three matrices of the gated MLP.
        matrices = ((query, hidden, 2), (key_value, hidden, 2), (inner, hidden, 3))
        vectors = 2 * hidden + (2 * head_dim(arch) if arch.family == "qwen3" else 0)
        final_norm = hidden
        embedding = output
    block = vectors + sum(rows * columns * count for rows, columns, count in matrices)
    return ParameterCount(
        embedding=embedding,
        blocks=arch.layers * block + final_norm,
        matrices=tuple((rows, columns, arch.layers * count) for rows, columns, count in matrices),
        output=output,
        tied=arch.tied_embeddings,
    )


def adapter_parameters(arch: ArchConfig, targets: Sequence[str], rank: int) -> int:
    """Count the parameters of LoRA adapters (Hu et al. 2022): rank x (inputs + outputs) per adapted matrix.

    `targets` are names of modules, or "all-linear" for all matrices of the blocks. A name that this family's
    blocks don't have adapts nothing here.
    """
    hidden, inner = arch.hidden_size, arch.intermediate_size
    query, key_value = arch.heads * head_dim(arch), arch.kv_heads * head_dim(arch)
    sizes = {
        "q_proj": (hidden, query), "k_proj": (hidden, key_value), "v_proj": (hidden, key_value),
        "o_proj": (query, hidden), "gate_proj": (hidden, inner), "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }  # fmt: skip
    if arch.family == "gpt2":
        # Two matrices of a block are called c_proj.
        sizes = {
            "c_attn": (hidden, 3 * hidden), "attn.c_proj": (hidden, hidden),
            "c_fc": (hidden, inner), "mlp.c_proj": (inner, hidden),
        }  # fmt: skip
    adapted = [
        sum(size)
        for name, size in sizes.items()
        if "all-linear" in targets or any(name.endswith(target) for target in targets)
    ]
    return arch.layers * rank * sum(adapted)


def flops_per_token(arch: ArchConfig, vocab_size: int, sequence_length: int) -> float:
    """Return the forward and backward FLOPs of one token."""
    parameters = count_parameters(arch, vocab_size).in_matrix_products
    attention = 12 * arch.layers * arch.heads * head_dim(arch) * sequence_length
    return float(6 * parameters + attention)
