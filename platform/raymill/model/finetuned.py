"""A fine-tuned model as standard Hugging Face folders: the whole model, and its adapters where there are
any."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from raymill.data.text.control_tokens import ControlTokens, give_own_padding, write_generation
from raymill.model.export import copy_tokenizer, flush, replaced_whole
from raymill.model.parent import SCALAR_HEADS
from raymill.model.quiet import model_of
from raymill.model.saved import Probes, Saved, compared, loaded_outputs, note, trained_outputs


def save_finetuned(
    model: Any,
    tokenizer_folder: Path,
    target: Path,
    *,
    precision: str,
    tokens: ControlTokens,
    probe_ids: Probes,
    parent: Path | None = None,
    scalar: bool = False,
) -> Saved:
    """Write `target`, replacing it whole, so that `AutoModelForCausalLM.from_pretrained(target)` loads it,
    and compare it with `model`, which changes. Adapters are merged into it, and lie in `target`/../adapter too,
    to be put on `parent`.

    `scalar`: the model gives one number, and `AutoModelForSequenceClassification` loads it. Its tokenizer has a
    padding token that is nothing else, by which transformers finds the last token.

    Raises:
        CheckpointError: a saved model doesn't compute what `model` does.
    """
    before = trained_outputs(model, probe_ids, scalar)
    with ExitStack() as stack:
        if hasattr(model, "merge_and_unload"):
            adapter = stack.enter_context(replaced_whole(target.with_name("adapter")))
            _write_adapter(model, tokenizer_folder, adapter, tokens, scalar)
            if parent is not None:
                load = partial(_adapted, parent, adapter, scalar)
                # Adapters are kept in fp32.
                compared(before, loaded_outputs(adapter, probe_ids, scalar, load), "fp32")
            model = model.merge_and_unload()
        whole = stack.enter_context(replaced_whole(target))
        padding = _write_tokenizer(tokenizer_folder, whole, tokens, scalar)
        _write_model(model, whole, precision, replace(tokens, padding=padding), scalar)
        saved = compared(before, loaded_outputs(whole, probe_ids, scalar), precision)
        note(whole, saved)
        flush(whole)
    return saved


def _write_adapter(
    model: Any, tokenizer_folder: Path, target: Path, tokens: ControlTokens, scalar: bool
) -> None:
    model.save_pretrained(target)
    (target / "README.md").unlink(missing_ok=True)  # peft's unfilled template
    _write_tokenizer(tokenizer_folder, target, tokens, scalar)


def _write_tokenizer(source: Path, target: Path, tokens: ControlTokens, scalar: bool) -> int:
    """Copy the tokenizer; return the id that pads."""
    copy_tokenizer(source, target)
    return give_own_padding(target, tokens.stops) if scalar else tokens.padding


def _write_model(
    model: Any, target: Path, precision: str, tokens: ControlTokens, scalar: bool
) -> None:
    import torch
    from transformers import GenerationConfig

    _make_room(model, tokens.padding)
    for config in (model.config, model.config.get_text_config()):
        config.update(tokens.settings())
    settings = {} if scalar else model.generation_config.to_diff_dict()
    if not scalar:
        # The parent's may be such as transformers reads but doesn't save.
        model.generation_config = GenerationConfig()
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32).save_pretrained(target)
    if not scalar:
        write_generation(target, settings, tokens)


def _make_room(model: Any, index: int) -> None:
    """Rows for all ids up to `index`; new ones are zero: nothing is trained on them."""
    import torch

    before = model.get_input_embeddings().weight.shape[0]
    if index >= before:
        model.resize_token_embeddings(index + 1, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[before:] = 0


def _adapted(parent: Path, adapter: Path, scalar: bool) -> Any:
    """The parent with saved adapters, as peft's documentation loads them."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    cls, settings = AutoModelForCausalLM, {}
    if scalar:
        cls, settings = AutoModelForSequenceClassification, {"num_labels": 1}
    tokenizer = AutoTokenizer.from_pretrained(
        adapter, local_files_only=True, trust_remote_code=False
    )
    # A new head lies beside the adapters.
    new = SCALAR_HEADS if scalar else frozenset()
    base: Any = model_of(cls, parent, new, dtype=torch.float32, **settings)
    _make_room(base, len(tokenizer) - 1)
    base.config.pad_token_id = base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return PeftModel.from_pretrained(base, adapter, trust_remote_code=False)
