"""Forward passes for every objective: rows cut into sequences, logits or scores at selected positions.

Shapes: B rows, L tokens of the longest row, T tokens of a pass (L, or L - 1 where each row's last token is only
predicted), S sequences in all rows, N selected predictions, V vocabulary. Rows are padded on the right, where
causal attention never looks from a real token, so padding needs no mask.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from raymill.objective.heads import Fp32Head
from raymill.objective.objective import Forward, ModelOutput

# Kernels that take one long row and the bounds of its sequences, as FlashAttention's `varlen` functions do.
# Given several rows, they would only separate whole rows.
FLAT_KERNELS = ("flash_attention_2",)


@dataclass(frozen=True)
class Sequences:
    """Rows of tokens, and the offsets of their sequences in the flattened rows; none spans two rows."""

    tokens: torch.Tensor  # [B, T] int64
    cu_seqlens: torch.Tensor  # [S + 1] int32, ascending; the last is B · T

    @classmethod
    def from_tokens(
        cls, tokens_BT: torch.Tensor, opens_BT: torch.Tensor | None = None
    ) -> Sequences:
        """Cut rows before each position where `opens_BT` is true; None leaves them whole."""
        starts_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        if opens_BT is not None:
            starts_BT |= opens_BT
        starts_BT[:, 0] = True
        start_S = starts_BT.flatten().nonzero().squeeze(1)
        end = torch.tensor([tokens_BT.numel()])
        return cls(tokens_BT, torch.cat([start_S, end]).int())

    @property
    def packed(self) -> bool:
        """Tell whether any row holds several sequences."""
        return len(self.cu_seqlens) - 1 > len(self.tokens)

    @property
    def positions(self) -> torch.Tensor:
        """[B, T] Position of each token in its sequence."""
        start_N = self.cu_seqlens[:-1].repeat_interleave(self.cu_seqlens.diff())
        return (torch.arange(self.tokens.numel()) - start_N).view(self.tokens.shape)

    def arguments(self, flat: bool) -> dict[str, torch.Tensor | int]:
        """Return the keyword arguments of a transformers model, on the host.

        Normally rows stay rows: transformers derives each row's mask from positions that restart. With `flat`
        they become one row with the bounds of its sequences, which transformers hands to the kernel.
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


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids of unequal lengths as [B, T], padded on the right with 0, and their lengths [B]."""
    width = max(map(len, rows))
    tokens_BT = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return tokens_BT, torch.tensor([len(row) for row in rows])


def run_model(forward: Forward, sequences: Sequences, device: torch.device) -> ModelOutput:
    """Return a model's output for sequences.

    Its first two dimensions are [B, T] or, with a flat kernel, [1, B · T]; callers flatten both.
    """
    # DeepSpeed's engine wraps the model, whose configuration names the kernel.
    config = getattr(getattr(forward, "module", forward), "config", None)
    flat = getattr(config, "_attn_implementation", None) in FLAT_KERNELS
    on_device = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in sequences.arguments(flat).items()
    }
    return forward(**on_device, use_cache=False)


@dataclass(frozen=True)
class SelectedLogits:
    """Logits of selected predictions, with the row, column and target token of each, [N].

    Where nothing is selected, one prediction stands in so that the head still takes part (ZeRO-3 gathers its
    weights on every rank); `counts` is then 0.
    """

    row: torch.Tensor
    column: torch.Tensor
    target: torch.Tensor
    logits: torch.Tensor  # [N, V]
    counts: float


def selected_logits(
    forward: Forward,
    head: torch.nn.Module,
    tokens_BL: torch.Tensor,
    selected_BT: torch.Tensor,
    device: torch.device,
    opens_BT: torch.Tensor | None = None,
) -> SelectedLogits:
    """Run the model on all tokens but each row's last, with logits only where `selected_BT` isn't 0.

    With a large vocabulary, the logits of every position would take most of the memory. `head` is the model's
    output matrix; rows are cut into sequences where `opens_BT` is true.
    """
    row_N, column_N = torch.nonzero(selected_BT, as_tuple=True)
    nothing_selected = not len(row_N)
    if nothing_selected:
        row_N, column_N = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    sequences = Sequences.from_tokens(tokens_BL[:, :-1].contiguous(), opens_BT)
    with _inputs_at(head, (row_N * selected_BT.shape[1] + column_N).to(device)):
        logits_NV = run_model(forward, sequences, device).logits
    target_N = tokens_BL[row_N, column_N + 1].to(device)
    counts = float(not nothing_selected)
    return SelectedLogits(row_N.to(device), column_N.to(device), target_N, logits_NV, counts)


@contextmanager
def _inputs_at(head: torch.nn.Module, flat_N: torch.Tensor) -> Iterator[None]:
    """Context in which `head` receives only these of the flattened positions, so that it returns [N, V]."""
    handle = head.register_forward_pre_hook(
        lambda _module, inputs: (inputs[0].flatten(0, 1)[flat_N], *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def all_scores(
    forward: Forward,
    head: torch.nn.Module,
    tokens_BL: torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """[B, L] fp32: the scalar head's score at every token, as reward models and critics have one."""
    seen: list[torch.Tensor] = []

    def record_output(_module: torch.nn.Module, _inputs: object, output_BL1: torch.Tensor) -> None:
        seen.append(output_BL1)

    # transformers' classifiers score every position and then keep one per row, found by looking for padding
    # tokens. The scores of all positions are only available from the head itself.
    handle = head.register_forward_hook(record_output)
    try:
        with Fp32Head(head):
            run_model(forward, Sequences.from_tokens(tokens_BL), device)
    finally:
        handle.remove()
    return seen[0].view(tokens_BL.shape)


def scores_at(
    forward: Forward,
    head: torch.nn.Module,
    tokens_BL: torch.Tensor,
    position_B: torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """[B] fp32: the scalar head's score at one position of each row."""
    score_BL = all_scores(forward, head, tokens_BL, device)
    return score_BL[torch.arange(len(position_B), device=device), position_B.to(device)]
