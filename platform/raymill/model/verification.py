"""Verification of saved models: outputs of the model in memory compared with those of the saved folder.

The first are computed as in training, the second as a user of transformers gets them, so that errors of saving
and merging show. Each side's weights are read layer by layer, so that no whole model is in memory. The
files are compared with the weights as they are written (`weight_files.py`).

Shapes: S sequences, L tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.data.store.manifest import read_tokenizer
from raymill.durable import write_atomic
from raymill.errors import CheckpointError
from raymill.model.folder import open_adapted, open_folder
from raymill.model.lazy import LazyModel

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# Largest |Δ| over the largest |logit| or |score|. The weights' rounding causes several times less.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
# Texts on which the saved tokenizer is compared: spaces, lines, other scripts.
TEXTS = ("How are you?", " two  spaces\n\nand\ta line ", "naïve café — 你好 🙂", "x = {'a': 1}\n")

# Sequences of token ids, best of unequal lengths.
Probes = Sequence[Sequence[int]]


@dataclass(frozen=True)
class SavedComparison:
    """Comparison of a saved model with the one in memory, on a few held-out rows."""

    logit_difference: float  # largest |Δ| over the largest |logit|, or |score|
    same_choice: float  # share of positions where the likeliest token is the same


def trained_outputs(trained: LazyModel, probes: Probes, scalar: bool) -> list[Tensor]:
    """Return the logits [n, V] of each sequence, or its score [1, 1], computed as in training."""
    import torch

    from raymill.model.parent import scalar_head
    from raymill.objective.forward import Sequences, pad_right, run_model, scores_at

    trained.model.eval()
    device = torch.device("cpu")
    tokens_SL, length_S = pad_right(probes)
    with torch.no_grad(), trained.computing() as model:
        if scalar:
            scores_S = scores_at(model, scalar_head(model), tokens_SL, length_S - 1, device)
            return list(scores_S.float().view(-1, 1, 1))
        logits_SLV = run_model(model, Sequences.from_tokens(tokens_SL), device).logits
    return [row[:length].float() for row, length in zip(logits_SLV, length_S, strict=True)]


def loaded_outputs(
    folder: Path, probes: Probes, scalar: bool, parent: Path | None = None
) -> list[Tensor]:
    """Return the same for a folder, computed by transformers alone on a batch that the folder's tokenizer pads.

    The folder holds adapters alone if `parent` is given.
    """
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    _check_encoding(folder, tokenizer)
    loaded = open_folder(folder, scalar) if parent is None else open_adapted(parent, folder, scalar)
    loaded.model.eval()
    # A pass without position ids: families that count positions from the left need padding on the right.
    side = None if scalar else "right"
    batch = tokenizer.pad(
        {"input_ids": [list(ids) for ids in probes]},
        padding=True,
        padding_side=side,
        return_tensors="pt",
    )
    with torch.no_grad(), loaded.computing() as model:
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits.float()
    if scalar:
        return list(logits.view(-1, 1, 1))
    return [row[: len(ids)] for row, ids in zip(logits, probes, strict=True)]


def _check_encoding(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that transformers encodes texts with the folder's tokenizer as training did."""
    own = read_tokenizer(folder / "tokenizer.json")
    for text in TEXTS:
        theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
        if theirs != own.encode(text, add_special_tokens=False).ids:
            raise CheckpointError(
                f"transformers reads the tokenizer in {folder} differently from training: it encodes {text!r} "
                "as other tokens; nothing was exported. Compare tokenizer_config.json with the parent's"
            )


def compare_outputs(
    before: Sequence[Tensor], after: Sequence[Tensor], precision: str
) -> SavedComparison:
    """Compare the outputs of the trained model (`before`) with those of the saved one.

    Raises:
        CheckpointError: they differ by more than rounding.
    """
    # Relative to the largest output, since rounding errors grow with it.
    scale = max(float(logits.abs().max()) for logits in before)
    pairs = list(zip(before, after, strict=True))
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs)
    saved = SavedComparison(
        difference / (scale or 1.0), same / sum(len(logits) for logits in before)
    )
    # Written so that NaN is refused.
    if not saved.logit_difference <= TOLERANCE[precision]:
        raise CheckpointError(
            f"the saved model's outputs, as transformers loads it, differ from the trained one's by "
            f"{saved.logit_difference:.2g} of their size, more than {TOLERANCE[precision]:g} "
            f"({saved.same_choice:.1%} of the likeliest tokens agree); nothing was exported"
        )
    return saved


def write_comparison(folder: Path, saved: SavedComparison | None) -> None:
    """Write the comparison next to the model; None if there was no memory for one."""
    text = json.dumps({"compared": False} if saved is None else asdict(saved), indent=1)
    write_atomic(folder / "saved.json", text)
