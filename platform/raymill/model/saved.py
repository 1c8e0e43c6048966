"""A saved model compared with the one in memory: what training computes, and what a user of transformers gets
from the folder. What saving and merging do is measured, not trusted.

Shapes: S sequences, L tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymill.data.store.manifest import read_tokenizer
from raymill.durable import write_atomic
from raymill.errors import CheckpointError
from raymill.model.quiet import model_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Largest |Δ| over the largest |logit| or |score|: rounding of weights, several times over, is below these.
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
# Encoded by the saved tokenizer as transformers reads it: spaces, lines, other scripts.
TEXTS = ("How are you?", " two  spaces\n\nand\ta line ", "naïve café — 你好 🙂", "x = {'a': 1}\n")

Probes = Sequence[Sequence[int]]  # sequences of ids, best of unequal lengths


@dataclass(frozen=True)
class Saved:
    """Comparison of a saved model with the one in memory, on a few held-out rows."""

    logit_difference: float  # largest |Δ| over the largest |logit|, or |score|
    same_choice: float  # share of places where the likeliest token is the same


def trained_outputs(model: Any, probes: Probes, scalar: bool) -> list[Tensor]:
    """[n, V] logits of each sequence, or [1, 1] its score: by the pass and at the places of training."""
    import torch

    from raymill.model.parent import scalar_head
    from raymill.objective.forward import Sequences, pad_right, run_model, scores_at

    model.eval()
    device = torch.device("cpu")
    tokens_SL, length_S = pad_right(probes)
    with torch.no_grad():
        if scalar:
            scores_S = scores_at(model, scalar_head(model), tokens_SL, length_S - 1, device)
            return list(scores_S.float().view(-1, 1, 1))
        logits_SLV = run_model(model, Sequences.from_tokens(tokens_SL), device).logits
    return [row[:length].float() for row, length in zip(logits_SLV, length_S, strict=True)]


def loaded_outputs(
    folder: Path, probes: Probes, scalar: bool, load: Callable[[], PreTrainedModel] | None = None
) -> list[Tensor]:
    """The same of a folder, as anyone runs it: its tokenizer pads the batch, transformers does the rest.

    `load` gives the model where it isn't a whole one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    _check_encoding(folder, tokenizer)
    cls = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    model = (load or _loader(cls, folder))().eval()
    # Logits of a bare pass: families that count positions from the left want padding on the right.
    side = None if scalar else "right"
    batch = tokenizer.pad(
        {"input_ids": [list(ids) for ids in probes]},
        padding=True,
        padding_side=side,
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits.float()
    if scalar:
        return list(logits.view(-1, 1, 1))
    return [row[: len(ids)] for row, ids in zip(logits, probes, strict=True)]


def _loader(cls: Any, folder: Path) -> Callable[[], PreTrainedModel]:
    import torch

    return lambda: model_of(cls, folder, dtype=torch.float32)


def _check_encoding(folder: Path, tokenizer: Any) -> None:
    """Refuse a folder whose texts transformers encodes otherwise than training did."""
    own = read_tokenizer(folder / "tokenizer.json")
    for text in TEXTS:
        theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
        if theirs != own.encode(text, add_special_tokens=False).ids:
            raise CheckpointError(
                f"transformers reads the tokenizer in {folder} otherwise than training did: it makes "
                f"other tokens of {text!r}; nothing was exported. Compare tokenizer_config.json with the "
                "parent's"
            )


def compared(before: Sequence[Tensor], after: Sequence[Tensor], precision: str) -> Saved:
    """Hold one's outputs to the other's.

    Raises:
        CheckpointError: they differ by more than rounding.
    """
    scale = max(float(logits.abs().max()) for logits in before)
    pairs = list(zip(before, after, strict=True))
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs)
    saved = Saved(difference / (scale or 1.0), same / sum(len(logits) for logits in before))
    if not saved.logit_difference <= TOLERANCE[precision]:
        raise CheckpointError(
            f"the saved model's outputs, as transformers loads it, differ from the trained one's by "
            f"{saved.logit_difference:.2g} of their size, more than {TOLERANCE[precision]:g} "
            f"({saved.same_choice:.1%} of the likeliest tokens agree); nothing was exported"
        )
    return saved


def note(folder: Path, saved: Saved | None) -> None:
    """Write the comparison beside the model; None where memory had no room for one."""
    text = json.dumps({"compared": False} if saved is None else asdict(saved), indent=1)
    write_atomic(folder / "saved.json", text)
