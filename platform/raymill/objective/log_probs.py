"""Log-probabilities of tokens that were chosen, and the entropy of what they were chosen from.

Shapes: N places, V vocabulary.
"""

from __future__ import annotations

import torch

CHUNK_ELEMENTS = 2**24  # logits whose fp32 copies are alive at once


def response_log_probs(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """([N], [N]) log softmax(logits / temperature) of the targets, and the entropies in nats; fp32.

    The first has a gradient, and so has the second. Chunks of places bound the memory of the copies.
    """
    rows = max(1, CHUNK_ELEMENTS // logits_NV.shape[1])
    parts = [
        _chunk(logits_NV[first : first + rows], targets_N[first : first + rows], temperature)
        for first in range(0, len(logits_NV), rows)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _chunk(
    logits_NV: torch.Tensor, targets_N: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    log_probs_NV = torch.log_softmax(logits_NV.float() / temperature, dim=-1)
    chosen_N = log_probs_NV.gather(1, targets_N[:, None]).squeeze(1)
    # A token that can't be drawn has log-probability -inf and adds nothing: 0 · -inf isn't 0.
    entropy_N = -(log_probs_NV.exp() * log_probs_NV.clamp(min=-1e30)).sum(dim=1)
    return chosen_N, entropy_N
