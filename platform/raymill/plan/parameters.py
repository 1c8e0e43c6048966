"""Parameter counts of the architecture presets, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from raymill.config.schema import ArchConfig


@dataclass(frozen=True)
class ParameterCount:
    """Trainable parameters, tied ones once."""

    embedding: int  # token (and learned position) embeddings
    blocks: int
    output: int  # the output matrix, whether or not it is tied to the embedding
    tied: bool

    @property
    def head(self) -> int:
        """The output matrix where it is a parameter of its own."""
        return 0 if self.tied else self.output

    @property
    def total(self) -> int:
        return self.embedding + self.blocks + self.head

    @property
    def in_matrix_products(self) -> int:
        """N of 6·N·D here: the blocks and the output matrix, tied or not; no embedding look-ups."""
        return self.blocks + self.output


def head_dim(arch: ArchConfig) -> int:
    """Width of one attention head."""
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
        attention = hidden * 3 * hidden + 3 * hidden + hidden * hidden + hidden
        feed_forward = 2 * hidden * inner + inner + hidden
        block = attention + feed_forward + 4 * hidden
        final_norm = 2 * hidden
        embedding = output + arch.max_positions * hidden
    else:
        attention = hidden * query + 2 * hidden * key_value + query * hidden
        if arch.family == "qwen3":
            attention += 2 * head_dim(arch)
        block = attention + 3 * hidden * inner + 2 * hidden
        final_norm = hidden
        embedding = output
    return ParameterCount(
        embedding=embedding,
        blocks=arch.layers * block + final_norm,
        output=output,
        tied=arch.tied_embeddings,
    )
