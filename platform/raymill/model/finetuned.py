"""A fine-tuned model as standard Hugging Face folders: the whole model, and its adapters where there are
any. What merging does is measured, not trusted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raymill.durable import fsync_path, write_atomic
from raymill.errors import CheckpointError
from raymill.model.export import copy_tokenizer, replaced_whole

# Largest |Δ logit| over the largest |logit|: rounding of weights, several times over, is below these.
MERGE_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}


Probe = Sequence[tuple[Sequence[int], Any]]  # ids, and the trained model's logits


@dataclass(frozen=True)
class Saved:
    """How a saved model compares with the one in memory, on a few rows of held-out conversations."""

    logit_difference: float  # largest |Δ logit| over the largest |logit|
    same_choice: float  # share of places where the likeliest token is the same


def save_finetuned(
    model: Any,
    tokenizer_folder: Path,
    target: Path,
    *,
    precision: str,
    stop_ids: Sequence[int],
    pad_id: int,
    probe_ids: Sequence[Sequence[int]],
    scalar: bool = False,
) -> Saved:
    """Write `target`, replacing it whole, so that `AutoModelForCausalLM.from_pretrained(target)` loads it,
    and compare it with `model` by logits. Adapters are merged into it, and lie in `target`/../adapter too.

    `stop_ids`: where generation stops, the end of turn first. `scalar`: the model gives one number, and
    `AutoModelForSequenceClassification` loads it.

    Raises:
        CheckpointError: the saved model doesn't compute what `model` does.
    """
    model.eval()
    probe = [(ids, _logits(model, ids)) for ids in probe_ids]
    adapter = target.with_name("adapter") if hasattr(model, "merge_and_unload") else None
    with ExitStack() as stack:
        if adapter is not None:
            temporary = stack.enter_context(replaced_whole(adapter))
            model.save_pretrained(temporary)
            copy_tokenizer(tokenizer_folder, temporary)
            (temporary / "README.md").unlink(missing_ok=True)  # peft's unfilled template
            model = model.merge_and_unload()
        if not scalar:
            _say_where_to_stop(model, stop_ids, pad_id)
        return _save_whole(model, tokenizer_folder, target, precision, scalar, probe)


def _say_where_to_stop(model: Any, stop_ids: Sequence[int], pad_id: int) -> None:
    from transformers import GenerationConfig

    model.config.eos_token_id = stop_ids[0]
    model.config.pad_token_id = pad_id
    model.generation_config = GenerationConfig(
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        bos_token_id=getattr(model.config, "bos_token_id", None),
    )


def _save_whole(
    merged: Any,
    tokenizer_folder: Path,
    target: Path,
    precision: str,
    scalar: bool,
    probe: Probe,
) -> Saved:
    """Write, load again, compare; only then does the folder take its place."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    loader = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with replaced_whole(target) as temporary:
        merged.to(dtype).save_pretrained(temporary)
        copy_tokenizer(tokenizer_folder, temporary)
        again = loader.from_pretrained(
            temporary, local_files_only=True, trust_remote_code=False, dtype=torch.float32
        ).eval()
        saved = _compared(
            [logits for _, logits in probe], [_logits(again, ids) for ids, _ in probe]
        )
        if saved.logit_difference > MERGE_TOLERANCE[precision]:
            raise CheckpointError(
                f"the saved model's outputs differ from the trained one's by "
                f"{saved.logit_difference:.2g} of their size, more than "
                f"{MERGE_TOLERANCE[precision]:g} ({saved.same_choice:.1%} of the likeliest tokens "
                "agree); nothing was exported"
            )
        write_atomic(temporary / "saved.json", json.dumps(asdict(saved), indent=1))
        for path in temporary.iterdir():
            fsync_path(path)
    return saved


def _logits(model: Any, ids: Sequence[int]) -> Any:
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits
    return logits.float().reshape(-1, logits.shape[-1])  # a scalar head gives one row of one number


def _compared(before: Sequence[Any], after: Sequence[Any]) -> Saved:
    scale = max(float(logits.abs().max()) for logits in before)
    difference = max(float((a - b).abs().max()) for a, b in zip(before, after, strict=True))
    same = sum(
        int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in zip(before, after, strict=True)
    )
    return Saved(difference / scale, same / sum(len(logits) for logits in before))
