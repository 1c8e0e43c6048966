"""Predicting the next token of packed text.

Shapes: B rows of a micro-batch, T predictions a row (a row holds T + 1 tokens), V vocabulary.
The loss is a *sum* over predicted tokens; the loop divides by the global batch's token count, so the
result doesn't depend on micro-batch, accumulation or world size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

IGNORE = -100


@dataclass(frozen=True)
class Rows:
    """Packed rows on the host, in storage dtype."""

    tokens: npt.NDArray[Any]  # [B, T + 1]; past a row's length: padding
    length: npt.NDArray[np.int32]  # [B] tokens that count, 2 to T + 1

    def __len__(self) -> int:
        return int(self.tokens.shape[0])

    def part(self, start: int, stop: int) -> Rows:
        """Rows [start, stop)."""
        return Rows(self.tokens[start:stop], self.length[start:stop])


@dataclass(frozen=True)
class LanguageModelling:
    """Cross-entropy on every next token, optionally blind to the documents packed before."""

    end_of_text_id: int
    document_mask: bool = False

    def predicted_tokens(self, rows: Rows) -> int:
        """How many tokens of `rows` have a loss."""
        return int(rows.length.sum(dtype=np.int64)) - len(rows)

    def loss_sum(
        self, forward: Callable[..., Any], rows: Rows, device: torch.device
    ) -> torch.Tensor:
        """Summed negative log-likelihood in nats, a scalar in fp32; `forward` returns `.logits`.

        No rows make a forward pass all the same, of one row that predicts nothing: under ZeRO-3 every
        rank must take part.
        """
        if len(rows) == 0:
            rows = Rows(np.zeros((1, rows.tokens.shape[1]), np.int64), np.ones(1, np.int32))
        tokens_BT1 = torch.from_numpy(rows.tokens.astype(np.int64))
        inputs_BT = tokens_BT1[:, :-1].contiguous()
        labels_BT = tokens_BT1[:, 1:].clone()
        column_T = torch.arange(labels_BT.shape[1])
        labels_BT[column_T >= torch.from_numpy(rows.length.astype(np.int64))[:, None] - 1] = IGNORE
        arguments: dict[str, torch.Tensor] = {"input_ids": inputs_BT.to(device)}
        if self.document_mask:
            positions_BT = document_positions(inputs_BT, self.end_of_text_id)
            arguments["position_ids"] = positions_BT.to(device)
        logits_BTV = forward(**arguments, use_cache=False).logits
        return F.cross_entropy(
            logits_BTV.flatten(0, 1).float(),
            labels_BT.flatten().to(device),
            ignore_index=IGNORE,
            reduction="sum",
        )


def document_positions(inputs_BT: torch.Tensor, end_of_text_id: int) -> torch.Tensor:
    """Positions that restart at every end-of-text token, which opens the document after it.

    transformers reads restarting positions as packed sequences and masks attention between them.
    """
    column_BT = torch.arange(inputs_BT.shape[1]).expand_as(inputs_BT)
    opens_BT = torch.where(inputs_BT == end_of_text_id, column_BT, torch.zeros_like(column_BT))
    return column_BT - opens_BT.cummax(dim=1).values
