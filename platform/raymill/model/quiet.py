"""transformers and DeepSpeed without the bars and notices that they print to a user's terminal, and without
taking files for absent that can't be read."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from raymill.errors import DataError
from raymill.reading import files_below, opened, retried

T = TypeVar("T")


def quieten() -> None:
    """To be called before a model is loaded or saved in a process that has a terminal."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Adapters import DeepSpeed, which says on which device it would run.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def config_of(folder: Path) -> Any:
    """Return transformers' configuration of a Hugging Face folder; raises as `from_folder` does."""
    from transformers import AutoConfig

    return from_folder(
        folder,
        lambda: AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
    )


def from_folder(folder: Path, load: Callable[[], T]) -> T:
    """Return what `load` has transformers make of a Hugging Face folder.

    Raises:
        DataError: its weights are damaged.
        StorageError: a file of the folder can't be read.
        OSError, ValueError: transformers has another complaint about the folder, which was there to be read.
    """
    from safetensors import SafetensorError

    def loaded() -> T:
        try:
            return load()
        except (OSError, ValueError):
            # It takes a file that it can't look at for absent, or for another one: each is looked at here.
            for path in files_below(folder):
                opened(path).close()
        return load()

    try:
        return retried(folder, loaded, parses=True)
    except SafetensorError as error:
        raise DataError(
            f"{folder}: its weights are damaged or incomplete ({error}); restore the files"
        ) from error
