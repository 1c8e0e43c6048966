"""A saved model and its tokenizer, ready to sample from."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from raymill.data.store.manifest import read_tokenizer
from raymill.data.text.text_prompts import TextPrompts
from raymill.data.text.tokenizer import read_settings
from raymill.errors import DataError
from raymill.reading import is_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, int | None]:
    """Return (model, tokenizer, end-of-text id) of a Hugging Face folder, from the disk alone.

    Raises:
        ConfigError: its family can't be sampled; see `mode_of`.
        DataError: it lacks weights, or they are damaged.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from raymill.generate.conversation import print_note
    from raymill.generate.modes import mode_of
    from raymill.model.loading import from_folder, load_hf_model, silence_libraries

    silence_libraries()
    tokenizer = from_folder(
        folder,
        lambda: AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        ),
    )
    model = load_hf_model(AutoModelForCausalLM, folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ends = token_id_list(model.config.eos_token_id)
    model = model.to(device).eval()
    if (note := mode_of(model).note(model)) is not None:
        print_note(note)
    return model, tokenizer, ends[0] if ends else None


def token_id_list(value: int | list[int] | None) -> list[int]:
    """Return the ids of a transformers setting that holds no token, one, or several."""
    return [] if value is None else [value] if isinstance(value, int) else list(value)


@lru_cache(maxsize=4)
def text_prompts(tokenizer: PreTrainedTokenizerBase) -> TextPrompts:
    """Return the prompt encoder of the folder from which transformers loaded a tokenizer.

    Raises:
        DataError: a file of the folder can't be read, or transformers has no fast tokenizer for it.
    """
    folder = Path(tokenizer.name_or_path)
    file = folder / "tokenizer.json"
    # Older folders lack the file; transformers converts their other files to a fast tokenizer.
    converted = getattr(tokenizer, "backend_tokenizer", None)
    backend = read_tokenizer(file) if is_file(file) else converted
    if backend is None:
        raise DataError(f"{folder} has no tokenizer.json; save its tokenizer there in that form.")
    # A tokenizer class may define special tokens that its folder doesn't list, as GPT-2's does.
    return TextPrompts(backend, {**read_settings(folder), **tokenizer.special_tokens_map})
