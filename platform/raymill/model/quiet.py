"""transformers and DeepSpeed without the bars and notices that they print to a user's terminal, without taking
files for absent that can't be read, and without drawing weights that a folder lacks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from raymill.errors import DataError
from raymill.reading import files_below, opened, retried

T = TypeVar("T")


def silence_libraries() -> None:
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


def model_of(cls: Any, folder: Path, new: frozenset[str] = frozenset(), **settings: Any) -> Any:
    """Return the model of a Hugging Face folder, of one of transformers' classes and never of code of its own.

    `new`: modules that the folder needn't have, whose weights are drawn at random.

    Raises:
        DataError: it lacks other weights, or has them in other shapes than the model; or they are damaged.
        StorageError: as `from_folder`, which also says what else is raised.
    """
    model, report = from_folder(
        folder,
        lambda: cls.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,  # nor asked about
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused here, in a sentence
            **settings,
        ),
    )
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise DataError(
            f"{folder}: {name} has shape {list(found)}, expected {list(expected)}; restore the files of one "
            "model, or give another"
        )
    lacking = sorted(name for name in report["missing_keys"] if new.isdisjoint(name.split(".")))
    if lacking:
        kind = "reward" if cls.__name__.endswith("ForSequenceClassification") else "language"
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise DataError(
            f"{folder} lacks weights of a {kind} model: {', '.join(lacking[:3])}{more}; restore its files, or "
            "give another model"
        )
    return model


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
