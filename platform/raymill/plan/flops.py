"""Training FLOPs, as the literature counts them.

6·N + 12·L·H·Q·T per token (PaLM, Chowdhery et al. 2022, appendix B): N parameters in matrix products
(blocks and output matrix, without embedding look-ups), L layers, H heads, Q head width, T sequence
length. Attention is counted in full although it is causal, and activation recomputation isn't counted:
this is the numerator of MFU, not of hardware utilisation.
"""

from __future__ import annotations

from raymill.plan.parameters import count_parameters, head_dim
from raymill.schema.sections import ArchConfig


def flops_per_token(arch: ArchConfig, vocab_size: int, sequence_length: int) -> float:
    """Forward and backward FLOPs of one token."""
    parameters = count_parameters(arch, vocab_size).in_matrix_products
    attention = 12 * arch.layers * arch.heads * head_dim(arch) * sequence_length
    return float(6 * parameters + attention)
