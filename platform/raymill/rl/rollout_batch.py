"""Sampled answers as tensors, from which a policy and its critic learn.

Shapes: B answers, L tokens of the longest with its prompt, T = L - 1 predictions, N answer tokens in all of
them. Column t of every [B, T] tensor belongs to the prediction of token t + 1. Padding is on the right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from raymill.objective.forward import selected_logits
from raymill.objective.heads import Fp32Head
from raymill.objective.log_probs import response_log_probs
from raymill.objective.objective import Forward


@dataclass(frozen=True)
class RolloutBatch:
    """Answers with their prompts; columns that aren't computed (yet) are None.

    π is the policy being updated, π_old the policy at the start of the step, μ the policy that sampled.
    """

    tokens: torch.Tensor  # [B, L] int64
    length: torch.Tensor  # [B] tokens without padding
    mask: torch.Tensor  # [B, T] 1 where an answer's token is learned from
    sampler: torch.Tensor  # [B, T] log μ of the drawn token
    old: torch.Tensor | None = None  # [B, T] log π_old
    reference: torch.Tensor | None = None  # [B, T] log π_ref
    advantage: torch.Tensor | None = None  # [B, T]
    value: torch.Tensor | None = None  # [B, T] the critic's, at the start of the step
    returns: torch.Tensor | None = None  # [B, T] the critic's targets
    kl_coefficient: float = 0.0  # β in this step

    @classmethod
    def from_columns(
        cls,
        prompts: Sequence[npt.ArrayLike],
        answers: Sequence[npt.ArrayLike],
        log_probs: Sequence[npt.ArrayLike],
    ) -> RolloutBatch:
        """Build a batch from token ids, and the sampler's log-probabilities of the answers' tokens."""
        prompt_ids = [np.asarray(prompt, np.int64) for prompt in prompts]
        answer_ids = [np.asarray(answer, np.int64) for answer in answers]
        sizes = [len(p) + len(a) for p, a in zip(prompt_ids, answer_ids, strict=True)]
        width = max([*sizes, 2])
        count = len(prompts)
        tokens_BL = torch.zeros(count, width, dtype=torch.long)
        mask_BT = torch.zeros(count, width - 1)
        sampler_BT = torch.zeros(count, width - 1)
        for row, (prompt, answer, drawn) in enumerate(
            zip(prompt_ids, answer_ids, log_probs, strict=True)
        ):
            tokens_BL[row, : sizes[row]] = torch.from_numpy(np.concatenate([prompt, answer]))
            mask_BT[row, len(prompt) - 1 : sizes[row] - 1] = 1.0
            sampler_BT[row, len(prompt) - 1 : sizes[row] - 1] = torch.from_numpy(
                np.asarray(drawn, np.float32)
            )
        return cls(tokens_BL, torch.tensor(sizes), mask_BT, sampler_BT)

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, stop: int) -> RolloutBatch:
        """Return answers [start, stop), as wide as the longest of them."""
        return self.take(torch.arange(start, min(stop, len(self))))

    def take(self, index: torch.Tensor) -> RolloutBatch:
        """Return the answers of these indices, as wide as the longest of them."""
        taken = {
            field.name: value[index]
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        width = max(2, int(taken["length"].max())) if len(index) else 2
        return RolloutBatch(
            **{
                name: value if value.ndim == 1 else value[:, : width - (name != "tokens")]
                for name, value in taken.items()
            },
            kl_coefficient=self.kl_coefficient,
        )


def token_log_probs(
    forward: Forward,
    head: torch.nn.Module,
    rollouts: RolloutBatch,
    temperature: float,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """([B, T], [B, T]) Log-probabilities of the answers' tokens and entropies of their distributions.

    In nats, fp32, at this temperature; 0 where the mask is 0. Logits are computed only at the answers' tokens.
    """
    with Fp32Head(head):
        selected = selected_logits(forward, head, rollouts.tokens, rollouts.mask, device)
    log_prob_N, entropy_N = response_log_probs(selected.logits, selected.target, temperature)
    zero_BT = torch.zeros(rollouts.mask.shape, dtype=torch.float32, device=device)
    index = (selected.row, selected.column)
    return (
        zero_BT.index_put(index, log_prob_N * selected.counts),
        zero_BT.index_put(index, entropy_N * selected.counts),
    )
