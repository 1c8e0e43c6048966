"""Supervised fine-tuning: predicting what the assistant said, given everything before it.

Shapes: B rows of a micro-batch, T predictions a row (a row holds T + 1 tokens), N tokens learned from in
all of them, V vocabulary.

A row holds several conversations, which don't see each other (see `Sequences`), so packing changes no
gradient. Logits are computed at the learned places alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from raymill.data.store.rows import Rows
from raymill.objective.objective import Forward, MetricSums
from raymill.objective.selected_logits import logits_at


@dataclass(frozen=True)
class AssistantTokens:
    """Cross-entropy on the tokens that carry a weight, their end of turn included.

    `head` is the model's output matrix (`get_output_embeddings()`).
    """

    head: torch.nn.Module
    metric_sums: MetricSums = field(default_factory=MetricSums)

    def weight(self, rows: Rows) -> float:
        """The summed weights of all tokens with a loss."""
        assert rows.weight is not None  # rows of conversations carry one
        return float(rows.weight[:, 1:].sum(dtype=np.float64))

    def losses(self, forward: Forward, rows: Rows, device: torch.device) -> torch.Tensor:
        """[B] Summed, weighted negative log-likelihood of each row; see `Objective.losses`."""
        if len(rows) == 0:
            rows = _one_idle_row(rows)
        assert rows.weight is not None and rows.segment is not None
        width = int(rows.length.max(initial=2))  # shorter than T + 1 where nothing was packed
        tokens_BT1 = torch.from_numpy(rows.tokens[:, :width].astype(np.int64))
        weight_BT = torch.from_numpy(rows.weight[:, 1:width].astype(np.float32))
        segment_BT = torch.from_numpy(rows.segment[:, : width - 1].astype(np.int64))
        opens_BT = torch.ones_like(segment_BT, dtype=torch.bool)
        opens_BT[:, 1:] = segment_BT[:, 1:] != segment_BT[:, :-1]
        places = logits_at(forward, self.head, tokens_BT1, weight_BT, device, opens_BT)
        nats_N = F.cross_entropy(places.logits.float(), places.target, reduction="none")
        weighted_N = nats_N * weight_BT.to(device)[places.row, places.column]
        zero_B = torch.zeros(len(rows), dtype=torch.float32, device=device)
        return zero_B.index_add(0, places.row, weighted_N)


def _one_idle_row(rows: Rows) -> Rows:
    width = rows.tokens.shape[1]
    return Rows(
        np.zeros((1, width), np.int64),
        np.full(1, 2, np.int32),
        weight=np.zeros((1, width), np.float32),
        segment=np.zeros((1, width), np.uint16),
    )
