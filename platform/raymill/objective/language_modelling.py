"""Predicting every next token of packed text.

Shapes: B rows of a micro-batch, T predictions a row (a row holds T + 1 tokens), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from raymill.data.rows import Rows
from raymill.objective.objective import IGNORE, Forward, Tally, predicted_tokens


@dataclass(frozen=True)
class LanguageModelling:
    """Cross-entropy on every next token, optionally blind to the documents packed before."""

    end_of_text_id: int
    document_mask: bool = False
    tally: Tally = field(default_factory=Tally)

    def weight(self, rows: Rows) -> float:
        """How many tokens of `rows` have a loss."""
        return float(predicted_tokens(rows))

    def losses(self, forward: Forward, rows: Rows, device: torch.device) -> torch.Tensor:
        """[B] Summed negative log-likelihood of each row in nats; see `Objective.losses`."""
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
        nats_BT = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(),
            labels_BT.flatten().to(device),
            ignore_index=IGNORE,
            reduction="none",
        ).view(labels_BT.shape)
        return nats_BT.sum(dim=1)


def document_positions(inputs_BT: torch.Tensor, end_of_text_id: int) -> torch.Tensor:
    """Positions that restart at every end-of-text token, which opens the document after it.

    transformers reads restarting positions as packed sequences and masks attention between them.
    """
    return restarting_positions(inputs_BT == end_of_text_id)


def restarting_positions(opens_BT: torch.Tensor) -> torch.Tensor:
    """[B, T] Positions that count from 0 at every place where `opens_BT` is true."""
    column_BT = torch.arange(opens_BT.shape[1]).expand_as(opens_BT)
    start_BT = torch.where(opens_BT, column_BT, torch.zeros_like(column_BT))
    return column_BT - start_BT.cummax(dim=1).values
