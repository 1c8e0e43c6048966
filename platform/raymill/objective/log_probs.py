"""Log-probabilities of tokens that were chosen, and the entropy of what they were chosen from.

Shapes: N places, V vocabulary, R places of a chunk.

Left to itself autograd keeps three fp32 copies of all logits for the backward pass, however small the
chunks: for a vocabulary of 150,000 more than the model. So the gradient is written out, and a chunk's
softmax is computed again when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

CHUNK_ELEMENTS = 2**24  # logits whose fp32 copies are alive at once


def response_log_probs(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """([N], [N]) log softmax(logits / temperature) of the targets, and the entropies in nats; fp32.

    The first has a gradient, and so has the second. Beside the logits and their gradient, chunks of places
    bound the memory. A logit of -inf is a token that can't be drawn: it adds nothing to the entropy.
    """
    log_prob_N, entropy_N = _Chosen.apply(logits_NV, targets_N, temperature)  # type: ignore[no-untyped-call]
    return log_prob_N, entropy_N


def entropy(log_probs_NV: torch.Tensor) -> torch.Tensor:
    """[N] −Σ p log p in nats; a token that can't be drawn (log-probability -inf) adds nothing."""
    return -(log_probs_NV.exp() * log_probs_NV.clamp(min=-1e30)).sum(dim=1)  # 0 · -inf isn't 0


class _Chosen(torch.autograd.Function):
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
        ctx: Any, of_log_prob_N: torch.Tensor | None, of_entropy_N: torch.Tensor | None
    ) -> tuple[torch.Tensor, None, None]:
        """With p = softmax(z/τ): ∂log p_k/∂z_v = (1[v = k] − p_v)/τ and ∂H/∂z_v = −p_v(log p_v + H)/τ."""
        logits_NV, targets_N, entropy_N = ctx.saved_tensors
        gradient_NV = torch.empty_like(logits_NV)
        for part in _chunks(logits_NV):
            log_probs_RV = torch.log_softmax(logits_NV[part].float() / ctx.temperature, dim=-1)
            probs_RV = log_probs_RV.exp()
            found_RV = torch.zeros_like(probs_RV)
            if of_log_prob_N is not None:
                of_R1 = of_log_prob_N[part, None]
                found_RV -= of_R1 * probs_RV
                found_RV.scatter_add_(1, targets_N[part, None], of_R1)
            if of_entropy_N is not None:
                surprise_RV = log_probs_RV.nan_to_num(neginf=0.0) + entropy_N[part, None]
                found_RV -= of_entropy_N[part, None] * probs_RV * surprise_RV
            gradient_NV[part] = found_RV / ctx.temperature
        return gradient_NV, None, None


def _chunks(logits_NV: torch.Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK_ELEMENTS // logits_NV.shape[1])
    return (slice(first, first + rows) for first in range(0, len(logits_NV), rows))
