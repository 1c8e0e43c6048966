"""Log-probabilities of target tokens, and the entropy of the distributions that they are drawn from.

Shapes: N predictions, V vocabulary, R predictions of a chunk.

Autograd would keep three fp32 copies of all logits for the backward pass, however small the chunks: with a
vocabulary of 150,000, more memory than the model. So the gradient is written out by hand, and each chunk's
softmax is recomputed in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

# Logits whose fp32 copies are in memory at once.
CHUNK_ELEMENTS = 2**24


def response_log_probs(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """([N], [N]) log softmax(logits / temperature) of the targets, and the entropies in nats; fp32.

    Both are differentiable. Apart from the logits and their gradient, memory is bounded by the chunks. A logit
    of -inf stands for a token that can't be drawn: it adds nothing to the entropy.
    """
    log_prob_N, entropy_N = _ResponseLogProbs.apply(logits_NV, targets_N, temperature)  # type: ignore[no-untyped-call]
    return log_prob_N, entropy_N


def entropy(log_probs_NV: torch.Tensor) -> torch.Tensor:
    """[N] −Σ p log p in nats; a token that can't be drawn (log-probability -inf) adds nothing."""
    # Clamped because 0 · -inf is NaN.
    return -(log_probs_NV.exp() * log_probs_NV.clamp(min=-1e30)).sum(dim=1)


class _ResponseLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_prob_N = logits_NV.new_empty(len(logits_NV), dtype=torch.float32)
        entropy_N = torch.empty_like(log_prob_N)
        for part in _chunks(logits_NV):
            log_probs_RV = torch.log_softmax(logits_NV[part].float() / temperature, dim=-1)
            log_prob_N[part] = log_probs_RV.gather(1, targets_N[part, None]).squeeze(1)
            entropy_N[part] = entropy(log_probs_RV)
        ctx.save_for_backward(logits_NV, targets_N, entropy_N)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return log_prob_N, entropy_N

    @staticmethod
    def backward(
        ctx: Any, d_log_prob_N: torch.Tensor | None, d_entropy_N: torch.Tensor | None
    ) -> tuple[torch.Tensor, None, None]:
        """Apply ∂log p_k/∂z_v = (1[v = k] − p_v)/τ and ∂H/∂z_v = −p_v(log p_v + H)/τ, with p = softmax(z/τ)."""
        logits_NV, targets_N, entropy_N = ctx.saved_tensors
        gradient_NV = torch.empty_like(logits_NV)
        for part in _chunks(logits_NV):
            log_probs_RV = torch.log_softmax(logits_NV[part].float() / ctx.temperature, dim=-1)
            probs_RV = log_probs_RV.exp()
            chunk_RV = torch.zeros_like(probs_RV)
            if d_log_prob_N is not None:
                d_log_prob_R1 = d_log_prob_N[part, None]
                chunk_RV -= d_log_prob_R1 * probs_RV
                chunk_RV.scatter_add_(1, targets_N[part, None], d_log_prob_R1)
            if d_entropy_N is not None:
                surprise_RV = log_probs_RV.nan_to_num(neginf=0.0) + entropy_N[part, None]
                chunk_RV -= d_entropy_N[part, None] * probs_RV * surprise_RV
            gradient_NV[part] = chunk_RV / ctx.temperature
        return gradient_NV, None, None


def _chunks(logits_NV: torch.Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK_ELEMENTS // logits_NV.shape[1])
    return (slice(first, first + rows) for first in range(0, len(logits_NV), rows))
