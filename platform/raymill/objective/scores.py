"""Scores of a scalar head, as reward models and critics have one, at the places that are asked for.

Shapes: S sequences, L tokens of the longest, padded on the right.

transformers' classifiers compute a score for every place and then give one a sequence, by looking for
padding; here all of them are taken from the head itself.
"""

from __future__ import annotations

from typing import Any

import torch

from raymill.objective.heads import Fp32Head
from raymill.objective.objective import Forward
from raymill.objective.sequences import Sequences, passed


def all_scores(
    forward: Forward,
    head: torch.nn.Module,
    tokens_SL: torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """[S, L] fp32: the head's score at every token."""
    seen: list[torch.Tensor] = []

    def note(_module: torch.nn.Module, _inputs: Any, output_SL1: torch.Tensor) -> None:
        seen.append(output_SL1)

    handle = head.register_forward_hook(note)
    try:
        with Fp32Head(head):
            passed(forward, Sequences.of(tokens_SL), device)
    finally:
        handle.remove()
    return seen[0].view(tokens_SL.shape)


def last_scores(
    forward: Forward,
    head: torch.nn.Module,
    tokens_SL: torch.Tensor,
    place_S: torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """[S] fp32: the score at one place of each sequence."""
    score_SL = all_scores(forward, head, tokens_SL, device)
    return score_SL[torch.arange(len(place_S), device=device), place_S.to(device)]
