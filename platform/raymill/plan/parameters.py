"""Parameter counts of the architecture presets, in closed form."""

from __future__ import annotations

from dataclasses import dataclass

from raymill.schema.sections import ArchConfig


@dataclass(frozen=True)
class ParameterCount:
    """Trainable parameters, tied ones once."""

    embedding: int  # token (and learned position) embeddings
    blocks: int
    matrices: tuple[tuple[int, int, int], ...]  # of the blocks: rows, columns, how many of them
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
    def in_block_matrices(self) -> int:
        """What Muon trains where it is chosen."""
        return sum(rows * columns * count for rows, columns, count in self.matrices)

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
        matrices = ((3 * hidden, hidden, 1), (hidden, hidden, 1), (inner, hidden, 2))
        vectors = 3 * hidden + hidden + inner + hidden + 4 * hidden
        final_norm = 2 * hidden
        embedding = output + arch.max_positions * hidden
    else:
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
