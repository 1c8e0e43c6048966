"""Models in Hugging Face folders, as transformers loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from raymill.model.blueprint import Blueprint
from raymill.model.lazy import LazyModel
from raymill.model.loading import load_hf_blueprint
from raymill.model.parent import SCALAR_HEADS
from raymill.model.vocabulary import resize_vocabulary


def open_folder(folder: Path, scalar: bool) -> LazyModel:
    """Return the model of a folder, in fp32; see `load_hf_blueprint` for errors."""
    return _plan(folder, scalar, frozenset()).lazy()


def _plan(folder: Path, scalar: bool, new: frozenset[str]) -> Blueprint:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto_class: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    settings: dict[str, Any] = {"num_labels": 1} if scalar else {}
    # What is new is replaced by the adapters' own.
    return load_hf_blueprint(auto_class, folder, 0, new, dtype=torch.float32, **settings)


def open_adapted(parent: Path, adapter: Path, scalar: bool) -> LazyModel:
    """Return the parent with saved adapters, as peft's documentation loads them."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        adapter, local_files_only=True, trust_remote_code=False
    )
    # A new head is saved with the adapters, so the parent need not have one.
    blueprint = _plan(parent, scalar, SCALAR_HEADS if scalar else frozenset())
    if len(tokenizer) > blueprint.model.get_input_embeddings().weight.shape[0]:
        blueprint = resize_vocabulary(blueprint, len(tokenizer), 0)
    loaded = blueprint.lazy()
    base = loaded.model
    base.config.pad_token_id = base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    # peft copies the modules of which rows, or all weights, are saved with the adapters.
    copied = [base.get_input_embeddings(), base.get_output_embeddings()]
    copied += [module for name, module in base.named_modules() if name in SCALAR_HEADS]
    with loaded.gather(p for module in copied if module is not None for p in module.parameters()):
        loaded.model = PeftModel.from_pretrained(base, adapter, trust_remote_code=False)
    return loaded
