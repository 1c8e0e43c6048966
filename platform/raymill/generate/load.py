"""A saved model and its tokenizer, ready to sample from."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load(folder: Path) -> tuple[Any, Any, int | None]:
    """(model, tokenizer, end-of-text id) of a Hugging Face folder, from the disk alone.

    Raises:
        ConfigError: its family can't be sampled; see `mode_of`.
        DataError: it lacks weights, or they are damaged.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from raymill.generate.conversation import print_note
    from raymill.generate.modes import mode_of
    from raymill.model.quiet import from_folder, model_of, silence_libraries

    silence_libraries()
    tokenizer = from_folder(
        folder,
        lambda: AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ),
    )
    model = model_of(AutoModelForCausalLM, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ends = named_ids(model.config.eos_token_id)
    model = model.to(device).eval()
    if (note := mode_of(model).note(model)) is not None:
        print_note(note)
    return model, tokenizer, ends[0] if ends else None


def named_ids(value: int | list[int] | None) -> list[int]:
    """transformers' settings name no token, one, or several."""
    return [] if value is None else [value] if isinstance(value, int) else list(value)
