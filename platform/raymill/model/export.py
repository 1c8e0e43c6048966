"""Export of a trained model as standard Hugging Face folders: the whole model, and its adapters if any.

Weights are read, merged, written and checked one tensor at a time, so that the memory needed is a few times the
largest tensor, whatever the model's size.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from raymill.data.text.control_tokens import (
    GENERATION_NAME,
    ControlTokens,
    give_own_padding,
    write_generation,
)
from raymill.durable import fsync_path
from raymill.model.lazy import LazyModel
from raymill.model.saved_tensors import DTYPES, SavedTensors, plain_model
from raymill.model.verification import (
    Probes,
    SavedComparison,
    compare_outputs,
    loaded_outputs,
    trained_outputs,
    write_comparison,
)
from raymill.model.weight_files import SHARD_BYTES, write_weights
from raymill.reading import entries, is_folder, read_bytes, read_json


@dataclass(frozen=True)
class SavedModel:
    """A saved folder: its comparison with the trained model, and the sha256 of its files of weights."""

    comparison: SavedComparison
    digests: Mapping[str, str]


def save_model(
    trained: LazyModel,
    tokenizer_folder: Path,
    target: Path,
    *,
    precision: str,
    tokens: ControlTokens,
    probe_ids: Probes,
    parent: Path | None = None,
    scalar: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> SavedModel:
    """Write `target` so that `AutoModelForCausalLM.from_pretrained(target)` loads it.

    The whole folder is replaced, and compared with the trained model, which stays as it is. Adapters are merged
    into copies of the weights; they are also saved in `target`/../adapter, to be loaded onto `parent`, whose
    sampling settings are kept.

    `scalar`: the model gives one number, and `AutoModelForSequenceClassification` loads it. Its tokenizer gets
    a padding token of its own, by which transformers finds the last token.

    Raises:
        CheckpointError: a saved model gives other outputs than the trained one, or a file has other tensors.
    """
    before = trained_outputs(trained, probe_ids, scalar)
    with ExitStack() as stack:
        # Only peft's models have this attribute.
        if hasattr(trained.model, "peft_config"):
            adapter = stack.enter_context(replaced_folder(target.with_name("adapter")))
            _write_adapter(trained, tokenizer_folder, adapter, tokens, scalar)
            if parent is not None:
                # Adapters are saved in fp32, whatever the precision of training.
                after = loaded_outputs(adapter, probe_ids, scalar, parent)
                compare_outputs(before, after, "fp32")
        whole = stack.enter_context(replaced_folder(target))
        # The scalar model's padding token may be a new one, for which the model needs a row.
        padding = _write_tokenizer(tokenizer_folder, whole, tokens, scalar)
        saved = SavedTensors(trained, precision, rows=padding + 1 if scalar else 0)
        digests = write_weights(whole, saved.forms, saved.tensor, shard_bytes)
        _write_settings(trained, whole, precision, replace(tokens, padding=padding), scalar, parent)
        comparison = compare_outputs(before, loaded_outputs(whole, probe_ids, scalar), precision)
        write_comparison(whole, comparison)
        flush(whole)
    return SavedModel(comparison, digests)


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which replaces `target` when the block ends without an error.

    Its files get the modes that the umask gives to new files.
    """
    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        _follow_umask(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # A folder can't be replaced in one step, so the old one is moved aside for a moment.
    if is_folder(target):
        old = target.with_name(f"{target.name}.old-{uuid.uuid4().hex[:8]}")
        target.replace(old)
        temporary.replace(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.replace(target)
    fsync_path(target.parent)


def _follow_umask(folder: Path) -> None:
    """Give every file the mode of a new one, since peft writes through private temporary files."""
    probe = folder / uuid.uuid4().hex
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode & 0o777)


def flush(folder: Path) -> None:
    """Flush a folder's files to the disk, so that they outlive a crash."""
    for path in folder.iterdir():
        fsync_path(path)


def copy_tokenizer(tokenizer_folder: Path, target: Path) -> None:
    """Copy a tokenizer's files into a model's folder, except generation settings, which the export writes."""
    for path in entries(tokenizer_folder):
        if path.name == GENERATION_NAME:
            continue
        (target / path.name).write_bytes(read_bytes(path))


def _write_adapter(
    trained: LazyModel,
    tokenizer_folder: Path,
    target: Path,
    tokens: ControlTokens,
    scalar: bool,
) -> None:
    # Only what is trained is saved, and it is small.
    with trained.gather(p for p in trained.model.parameters() if p.requires_grad):
        trained.model.save_pretrained(target)
    # peft writes a template of a model card with nothing filled in.
    (target / "README.md").unlink(missing_ok=True)
    _write_tokenizer(tokenizer_folder, target, tokens, scalar)


def _write_tokenizer(source: Path, target: Path, tokens: ControlTokens, scalar: bool) -> int:
    """Copy the tokenizer; return the id of its padding token."""
    copy_tokenizer(source, target)
    return give_own_padding(target, tokens.stops) if scalar else tokens.padding


def _write_settings(
    trained: LazyModel,
    target: Path,
    precision: str,
    tokens: ControlTokens,
    scalar: bool,
    parent: Path | None,
) -> None:
    """Write config.json and, for a language model, generation_config.json."""
    model = plain_model(trained.model)
    config = model.config.__class__.from_dict(model.config.to_dict())
    # Multimodal models have the token ids in a nested configuration as well.
    for part in (config, config.get_text_config()):
        part.update(tokens.settings())
    if scalar:
        text = config.get_text_config()
        text.vocab_size = max(text.vocab_size, tokens.padding + 1)
    config.architectures = [type(model).__name__]
    config.dtype = DTYPES[precision]
    config.save_pretrained(target)
    if not scalar:
        # The file has settings that transformers reads and doesn't keep.
        file = None if parent is None else read_json(parent / GENERATION_NAME)
        settings = model.generation_config.to_diff_dict() if file is None else file
        write_generation(target, settings, tokens)
