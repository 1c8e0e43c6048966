"""Cross-entropy of next tokens: of all packed text in pretraining, of the assistant's turns in fine-tuning.

Shapes: B rows of a micro-batch, T predictions per row (a row holds T + 1 tokens), N tokens with a loss in all
rows, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from raymill.data.store.rows import Rows
from raymill.objective.forward import Sequences, run_model, selected_logits
from raymill.objective.objective import IGNORE, Forward, MetricSums, predicted_tokens


@dataclass(frozen=True)
class LanguageModeling:
    """Cross-entropy on every next token, optionally without attention across documents packed into one row.

    `end_of_text_id`: the token that opens a document; for a tokenizer that has a beginning-of-text token, that.
    """

    end_of_text_id: int
    document_mask: bool = False
    metric_sums: MetricSums = field(default_factory=MetricSums)

    def weight(self, rows: Rows) -> float:
        """Return the number of tokens with a loss."""
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
        logits = run_model(forward, Sequences.from_tokens(inputs_BT, opens_BT), device).logits
        nats_BT = F.cross_entropy(
            logits.flatten(0, 1).float(),
            labels_BT.flatten().to(device),
            ignore_index=IGNORE,
            reduction="none",
        ).view(labels_BT.shape)
        return nats_BT.sum(dim=1)


@dataclass(frozen=True)
class AssistantTokens:
    """Cross-entropy on the tokens that carry a weight: the assistant's, their end of turn included.

    A row holds several conversations with no attention across them (see `Sequences`), so packing changes no
    gradient. `head` is the model's output matrix (`get_output_embeddings()`); logits are computed only at
    weighted positions.
    """

    head: torch.nn.Module
    metric_sums: MetricSums = field(default_factory=MetricSums)

    def weight(self, rows: Rows) -> float:
        """Return the summed weights of all tokens with a loss."""
        assert rows.weight is not None, "rows of conversations carry weights"
        return float(rows.weight[:, 1:].sum(dtype=np.float64))

    def losses(self, forward: Forward, rows: Rows, device: torch.device) -> torch.Tensor:
        """[B] Summed, weighted negative log-likelihood of each row; see `Objective.losses`."""
        if len(rows) == 0:
            width = rows.tokens.shape[1]
            rows = Rows(
                np.zeros((1, width), np.int64),
                np.full(1, 2, np.int32),
                weight=np.zeros((1, width), np.float32),
                segment=np.zeros((1, width), np.uint16),
            )
        assert rows.weight is not None, "rows of conversations carry weights"
        assert rows.segment is not None, "rows of conversations number their conversations"
        # Narrower than T + 1 where rows aren't packed full.
        width = int(rows.length.max(initial=2))
        tokens_BT1 = torch.from_numpy(rows.tokens[:, :width].astype(np.int64))
        weight_BT = torch.from_numpy(rows.weight[:, 1:width].astype(np.float32))
        segment_BT = torch.from_numpy(rows.segment[:, : width - 1].astype(np.int64))
        opens_BT = torch.ones_like(segment_BT, dtype=torch.bool)
        opens_BT[:, 1:] = segment_BT[:, 1:] != segment_BT[:, :-1]
        selected = selected_logits(forward, self.head, tokens_BT1, weight_BT, device, opens_BT)
        nats_N = F.cross_entropy(selected.logits.float(), selected.target, reduction="none")
        weighted_N = nats_N * weight_BT.to(device)[selected.row, selected.column]
        zero_B = torch.zeros(len(rows), dtype=torch.float32, device=device)
        return zero_B.index_add(0, selected.row, weighted_N)
