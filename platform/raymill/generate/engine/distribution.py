"""Distributions that answers are drawn from, computed from logits, and the draw itself.

Shapes: B rows, V vocabulary. Settings of rows are numbers, or tensors [B, 1] where rows differ.
"""

from __future__ import annotations

import numpy as np
import torch


def draw(
    probabilities_BV: torch.Tensor, uniform_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token per row, [B], by inverting its distribution function; return also its log-probability.

    The probabilities, in float64, may have any sum; the log-probability, [B] in float64, is of the renormalized
    distribution. `uniform_B`: numbers in [0, 1) in float64, on the same device.
    """
    reached_BV = probabilities_BV.cumsum(dim=-1)
    total_B1 = reached_BV[:, -1:]
    # The first token whose cumulative probability exceeds the number; such a token never has probability 0.
    token_B1 = torch.searchsorted(reached_BV, uniform_B[:, None] * total_B1, right=True)
    log_prob_B1 = (probabilities_BV.gather(-1, token_B1) / total_B1).log()
    return token_B1.squeeze(-1), log_prob_B1.squeeze(-1)


def nucleus(probabilities_BV: torch.Tensor, top_p: float | torch.Tensor) -> torch.Tensor:
    """Set the probabilities outside the nucleus to zero, without renormalizing.

    The nucleus is the smallest set of tokens whose probability reaches `top_p`, in float64 (Holtzman et al.
    2020). Of equally likely tokens at its edge, the first are inside. At 1, everything is.
    """
    descending_BV = _descending(probabilities_BV)
    before_BV = descending_BV.cumsum(dim=-1, dtype=torch.float64) - descending_BV
    size_B1 = (before_BV < top_p).sum(dim=-1, keepdim=True)
    least_B1 = descending_BV.gather(-1, size_B1 - 1)
    above_BV, edge_BV = probabilities_BV > least_B1, probabilities_BV == least_B1
    left_B1 = size_B1 - above_BV.sum(dim=-1, keepdim=True)
    kept_BV = above_BV | (edge_BV & (edge_BV.cumsum(dim=-1) <= left_B1))
    # Probabilities may sum to 1 before the last token, which a top_p of 1 keeps nevertheless.
    whole = torch.as_tensor(top_p, device=probabilities_BV.device) >= 1
    return probabilities_BV.masked_fill(~(kept_BV | whole), 0)


def _descending(values_BV: torch.Tensor) -> torch.Tensor:
    """Return each row sorted, the largest value first."""
    # On a CPU, NumPy takes an eighth of the time of torch's sort, which also computes indices.
    if values_BV.device.type == "cpu":
        return torch.from_numpy(np.sort(values_BV.detach().numpy(), axis=-1)).flip(-1)
    return values_BV.sort(dim=-1, descending=True).values


def likeliest(logits_BV: torch.Tensor, top_k_B1: torch.Tensor) -> torch.Tensor:
    """Set the logits below a row's `top_k`-th largest to -inf; 0 keeps all, and so do ties with it."""
    size = logits_BV.shape[-1]
    place_B1 = torch.where(top_k_B1 <= 0, size, top_k_B1.clamp(max=size)) - 1
    least_B1 = _descending(logits_BV).gather(-1, place_B1)
    return logits_BV.masked_fill(logits_BV < least_B1, -torch.inf)


def above_share(probabilities_BV: torch.Tensor, min_p_B1: torch.Tensor) -> torch.Tensor:
    """Set the probabilities below `min_p` times the row's largest to zero (Nguyen et al. 2024)."""
    least_B1 = probabilities_BV.amax(dim=-1, keepdim=True) * min_p_B1
    return probabilities_BV.masked_fill(probabilities_BV < least_B1, 0)
