"""Tokens of a pass that may see each other: rows cut into sequences, for every job and every kernel.

Shapes: B rows, T tokens of the longest, S sequences in all rows. Rows are padded on the right, where causal
attention never looks from a token that counts: padding needs no mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from raymill.objective.objective import Forward

# Kernels that take one long row and the bounds of its sequences, as FlashAttention's `varlen` functions do.
# Of several rows they would see only where each begins.
FLAT_KERNELS = ("flash_attention_2",)


@dataclass(frozen=True)
class Sequences:
    """Rows of tokens, and where in the flattened rows each sequence begins; no sequence spans two rows."""

    tokens: torch.Tensor  # [B, T] int64
    cu_seqlens: torch.Tensor  # [S + 1] int32, ascending; the last is B · T

    @classmethod
    def of(cls, tokens_BT: torch.Tensor, opens_BT: torch.Tensor | None = None) -> Sequences:
        """Cut rows before each place where `opens_BT` is true; None leaves them whole."""
        begins_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        if opens_BT is not None:
            begins_BT |= opens_BT
        begins_BT[:, 0] = True
        start_S = begins_BT.flatten().nonzero().squeeze(1)
        end = torch.tensor([tokens_BT.numel()])
        return cls(tokens_BT, torch.cat([start_S, end]).int())

    @property
    def packed(self) -> bool:
        """Tell whether a row holds several."""
        return len(self.cu_seqlens) - 1 > len(self.tokens)

    @property
    def positions(self) -> torch.Tensor:
        """[B, T] Each token's place in its sequence."""
        start_N = self.cu_seqlens[:-1].repeat_interleave(self.cu_seqlens.diff())
        return (torch.arange(self.tokens.numel()) - start_N).view(self.tokens.shape)

    def arguments(self, flat: bool) -> dict[str, torch.Tensor | int]:
        """Return what transformers' models take, on the host.

        Rows stay rows: from positions that restart transformers makes a mask for each row. With `flat` they
        become one, with its sequences' bounds, which transformers hands to the kernel.
        """
        if not flat:
            packed = {"position_ids": self.positions} if self.packed else {}
            return {"input_ids": self.tokens, **packed}
        longest = int(self.cu_seqlens.diff().max())
        return {
            "input_ids": self.tokens.reshape(1, -1),
            "position_ids": self.positions.view(1, -1),
            "cu_seq_lens_q": self.cu_seqlens,
            "cu_seq_lens_k": self.cu_seqlens,
            "max_length_q": longest,
            "max_length_k": longest,
        }


def padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids of unequal lengths as [B, T], padded on the right with 0, and their lengths [B]."""
    width = max(map(len, rows))
    tokens_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return tokens_BT, torch.tensor([len(row) for row in rows])


def passed(forward: Forward, sequences: Sequences, device: torch.device) -> Any:
    """A model's output for sequences. Its first two dimensions are [B, T] or [1, B · T], by the kernel: what is
    made of it flattens both."""
    arguments = sequences.arguments(_takes_flat_rows(forward))
    on_device = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }
    return forward(**on_device, use_cache=False)


def _takes_flat_rows(forward: Forward) -> bool:
    model = getattr(forward, "module", forward)  # DeepSpeed's engine has the model inside
    config = getattr(model, "config", None)
    return getattr(config, "_attn_implementation", None) in FLAT_KERNELS
