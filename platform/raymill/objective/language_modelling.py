"""Predicting every next token of packed text.

Shapes: B rows of a micro-batch, T predictions a row (a row holds T + 1 tokens), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from raymill.data.store.rows import Rows
from raymill.objective.objective import IGNORE, Forward, MetricSums, predicted_tokens
from raymill.objective.sequences import Sequences, passed


@dataclass(frozen=True)
class LanguageModelling:
    """Cross-entropy on every next token, optionally blind to the documents packed before.

    `end_of_text_id`: the token that opens a document, the one with which its tokenizer begins a text where it
    has such a token.
    """

    end_of_text_id: int
    document_mask: bool = False
    metric_sums: MetricSums = field(default_factory=MetricSums)

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
        opens_BT = inputs_BT == self.end_of_text_id if self.document_mask else None
        logits = passed(forward, Sequences.of(inputs_BT, opens_BT), device).logits
        nats_BT = F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels_BT.flatten().to(device),
            ignore_index=IGNORE,
            reduction="none",
        ).view(labels_BT.shape)
        return nats_BT.sum(dim=1)
