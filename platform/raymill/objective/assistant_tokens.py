"""Supervised fine-tuning: predicting what the assistant said, given everything before it.

Shapes: B rows of a micro-batch, T predictions a row (a row holds T + 1 tokens), N tokens learned from in
all of them, V vocabulary.

A row holds several conversations. Positions restart with each, and transformers masks attention between
them, so packing changes no gradient. Logits are computed at the learned places alone: of a vocabulary
of 100,000 they would otherwise be most of the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

from raymill.data.rows import Rows
from raymill.objective.language_modelling import restarting_positions
from raymill.objective.objective import Forward, Tally


@dataclass(frozen=True)
class AssistantTokens:
    """Cross-entropy on the tokens that carry a weight, their end of turn included.

    `head` is the model's output matrix (`get_output_embeddings()`).
    """

    head: torch.nn.Module
    tally: Tally = field(default_factory=Tally)

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
        row_N, column_N = torch.nonzero(weight_BT, as_tuple=True)
        if not len(row_N):  # the head takes part all the same
            row_N, column_N = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        flat_N = (row_N * (width - 1) + column_N).to(device)
        with only_at(self.head, flat_N):
            logits_NV = forward(
                input_ids=tokens_BT1[:, :-1].contiguous().to(device),
                position_ids=restarting_positions(opens_BT).to(device),
                use_cache=False,
            ).logits
        nats_N = F.cross_entropy(
            logits_NV.float(), tokens_BT1[row_N, column_N + 1].to(device), reduction="none"
        )
        weighted_N = nats_N * weight_BT[row_N, column_N].to(device)
        zero_B = torch.zeros(len(rows), dtype=torch.float32, device=device)
        return zero_B.index_add(0, row_N.to(device), weighted_N)


@contextmanager
def only_at(head: torch.nn.Module, flat_N: torch.Tensor) -> Iterator[None]:
    """Within the block, `head` sees just these of the flattened places, and gives [N, V]."""
    handle = head.register_forward_pre_hook(
        lambda _module, inputs: (inputs[0].flatten(0, 1)[flat_N], *inputs[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def _one_idle_row(rows: Rows) -> Rows:
    width = rows.tokens.shape[1]
    return Rows(
        np.zeros((1, width), np.int64),
        np.full(1, 2, np.int32),
        weight=np.zeros((1, width), np.float32),
        segment=np.zeros((1, width), np.uint16),
    )
