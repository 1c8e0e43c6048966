"""Export of a fine-tuned model as standard Hugging Face folders: the whole model, and its adapters if any."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.data.text.control_tokens import ControlTokens, give_own_padding, write_generation
from raymill.model.export import copy_tokenizer, flush, replaced_folder
from raymill.model.loading import load_hf_model
from raymill.model.parent import SCALAR_HEADS
from raymill.model.verification import (
    Probes,
    SavedComparison,
    compare_outputs,
    loaded_outputs,
    trained_outputs,
    write_comparison,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_finetuned(
    model: PreTrainedModel,
    tokenizer_folder: Path,
    target: Path,
    *,
    precision: str,
    tokens: ControlTokens,
    probe_ids: Probes,
    parent: Path | None = None,
    scalar: bool = False,
) -> SavedComparison:
    """Write `target` so that `AutoModelForCausalLM.from_pretrained(target)` loads it.

    The whole folder is replaced, and compared with `model`. Adapters are merged into the model, which changes
    `model`; they are also saved in `target`/../adapter, to be loaded onto `parent`.

    `scalar`: the model gives one number, and `AutoModelForSequenceClassification` loads it. Its tokenizer gets
    a padding token of its own, by which transformers finds the last token.

    Raises:
        CheckpointError: a saved model gives other outputs than `model`.
    """
    # Computed before adapters are merged, which changes the model.
    before = trained_outputs(model, probe_ids, scalar)
    with ExitStack() as stack:
        # Only peft's models have this method.
        if hasattr(model, "merge_and_unload"):
            adapter = stack.enter_context(replaced_folder(target.with_name("adapter")))
            _write_adapter(model, tokenizer_folder, adapter, tokens, scalar)
            if parent is not None:
                load = partial(load_adapted, parent, adapter, scalar)
                # Adapters are saved in fp32, whatever the precision of training.
                compare_outputs(before, loaded_outputs(adapter, probe_ids, scalar, load), "fp32")
            model = model.merge_and_unload()
        whole = stack.enter_context(replaced_folder(target))
        # The scalar model's padding token may be a new one, for which the model needs a row.
        padding = _write_tokenizer(tokenizer_folder, whole, tokens, scalar)
        _write_model(model, whole, precision, replace(tokens, padding=padding), scalar)
        saved = compare_outputs(before, loaded_outputs(whole, probe_ids, scalar), precision)
        write_comparison(whole, saved)
        flush(whole)
    return saved


def _write_adapter(
    model: PreTrainedModel,
    tokenizer_folder: Path,
    target: Path,
    tokens: ControlTokens,
    scalar: bool,
) -> None:
    model.save_pretrained(target)
    # peft writes a template of a model card with nothing filled in.
    (target / "README.md").unlink(missing_ok=True)
    _write_tokenizer(tokenizer_folder, target, tokens, scalar)


def _write_tokenizer(source: Path, target: Path, tokens: ControlTokens, scalar: bool) -> int:
    """Copy the tokenizer; return the id of its padding token."""
    copy_tokenizer(source, target)
    return give_own_padding(target, tokens.stops) if scalar else tokens.padding


def _write_model(
    model: PreTrainedModel, target: Path, precision: str, tokens: ControlTokens, scalar: bool
) -> None:
    import torch
    from transformers import GenerationConfig

    _extend_embeddings(model, tokens.padding)
    # Multimodal models have the token ids in a nested configuration as well.
    for config in (model.config, model.config.get_text_config()):
        config.update(tokens.settings())
    settings = {} if scalar else model.generation_config.to_diff_dict()
    if not scalar:
        # transformers reads some generation settings that it refuses to save.
        model.generation_config = GenerationConfig()
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32).save_pretrained(target)
    if not scalar:
        write_generation(target, settings, tokens)


def _extend_embeddings(model: PreTrainedModel, index: int) -> None:
    """Extend the embeddings to all ids up to `index`; new rows are zero, since nothing was trained on them."""
    import torch

    before = model.get_input_embeddings().weight.shape[0]
    if index >= before:
        model.resize_token_embeddings(index + 1, mean_resizing=False)
        with torch.no_grad():
            model.get_input_embeddings().weight[before:] = 0


def load_adapted(parent: Path, adapter: Path, scalar: bool) -> PreTrainedModel:
    """Load the parent with saved adapters, as peft's documentation does."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    cls, settings = AutoModelForCausalLM, {}
    if scalar:
        cls, settings = AutoModelForSequenceClassification, {"num_labels": 1}
    tokenizer = AutoTokenizer.from_pretrained(
        adapter, local_files_only=True, trust_remote_code=False
    )
    # A new head is saved with the adapters, so the parent need not have one.
    new = SCALAR_HEADS if scalar else frozenset()
    base = load_hf_model(cls, parent, new, dtype=torch.float32, **settings)
    _extend_embeddings(base, len(tokenizer) - 1)
    base.config.pad_token_id = base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    return PeftModel.from_pretrained(base, adapter, trust_remote_code=False)
