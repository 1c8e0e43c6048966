"""Loading of Hugging Face folders, without surprises.

transformers prints progress bars, takes an unreadable file for an absent one, and initializes at random the
weights that a folder lacks. Here it is silent, such a file is an error, and so are missing weights.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from raymill.errors import DataError
from raymill.reading import files_below, opened, retried

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    from raymill.model.blueprint import Blueprint

T = TypeVar("T")


def silence_libraries() -> None:
    """Silence transformers and DeepSpeed; call it before a process with a terminal loads or saves a model."""
    # The variables also reach processes that this one starts.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # peft imports DeepSpeed, which logs its choice of a device.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def load_hf_config(folder: Path) -> PretrainedConfig:
    """Return transformers' configuration of a Hugging Face folder; for errors see `from_folder`."""
    from transformers import AutoConfig

    return from_folder(
        folder,
        lambda: AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
    )


def load_hf_model(
    auto_class: type[_BaseAutoModelClass],
    folder: Path,
    new: frozenset[str] = frozenset(),
    **settings: object,
) -> PreTrainedModel:
    """Return the model of a Hugging Face folder, of a class of transformers and never of the folder's own code.

    `new`: modules that the folder need not have; their weights are drawn at random. `settings` are passed on to
    `from_pretrained`.

    Raises:
        DataError: other weights are missing, damaged, or of other shapes than the model's.
        StorageError, OSError, ValueError: see `from_folder`.
    """
    model, report = from_folder(folder, lambda: _from_pretrained(auto_class, folder, settings))
    _refuse_other_weights(auto_class, folder, new, report)
    return model


def load_hf_blueprint(
    auto_class: type[_BaseAutoModelClass],
    folder: Path,
    seed: int,
    new: frozenset[str] = frozenset(),
    **settings: object,
) -> Blueprint:
    """Return what `load_hf_model` does, before its weights are read; those that are drawn, from `seed`."""
    from raymill.model.blueprint import Blueprint
    from raymill.model.folder_tensors import tie_equal_weights, unread
    from raymill.model.trace import Trace

    def loaded() -> tuple[Trace, PreTrainedModel, dict[str, Any]]:
        trace = Trace()
        with unread(trace):
            return trace, *_from_pretrained(auto_class, folder, settings)

    trace, model, report = from_folder(folder, loaded)
    _refuse_other_weights(auto_class, folder, new, report)
    tie_equal_weights(model, trace)
    return Blueprint.traced(model, trace, seed)


def _from_pretrained(
    auto_class: type[_BaseAutoModelClass], folder: Path, settings: Mapping[str, object]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    model, report = auto_class.from_pretrained(
        folder,
        local_files_only=True,
        # False also suppresses the question whether to run the folder's own code.
        trust_remote_code=False,
        output_loading_info=True,
        # Mismatched sizes are refused below, with a plainer message.
        ignore_mismatched_sizes=True,
        **settings,
    )
    return model, report


def _refuse_other_weights(
    auto_class: type[_BaseAutoModelClass],
    folder: Path,
    new: frozenset[str],
    report: Mapping[str, Any],
) -> None:
    # A folder of another model must not pass as one with new weights.
    for name, shape, expected in sorted(report["mismatched_keys"]):
        raise DataError(
            f"{folder}: {name} has shape {list(shape)}, expected {list(expected)}; restore the files of one "
            "model, or give another"
        )
    lacking = sorted(name for name in report["missing_keys"] if new.isdisjoint(name.split(".")))
    if lacking:
        kind = "reward" if auto_class.__name__.endswith("ForSequenceClassification") else "language"
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise DataError(
            f"{folder} lacks weights of a {kind} model: {', '.join(lacking[:3])}{more}; restore its files, or "
            "give another model"
        )


def from_folder(folder: Path, load: Callable[[], T]) -> T:
    """Call `load`, which has transformers read a Hugging Face folder, and return its result.

    Raises:
        DataError: the folder's weights are damaged.
        StorageError: a file of the folder can't be read.
        OSError, ValueError: the folder is readable, and transformers refuses it for another reason.
    """
    from safetensors import SafetensorError

    def loaded() -> T:
        try:
            return load()
        except (OSError, ValueError):
            # transformers takes an unreadable file for an absent one, so opening each tells them apart.
            for path in files_below(folder):
                opened(path).close()
        return load()

    try:
        return retried(folder, loaded, parses=True)
    except SafetensorError as error:
        raise DataError(
            f"{folder}: its weights are damaged or incomplete ({error}); restore the files"
        ) from error
