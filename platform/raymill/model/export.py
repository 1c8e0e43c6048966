"""Export of a checkpoint's weights as a standard Hugging Face folder.

The folder is written from the fragment files, one shard's tensors at a time. This needs neither the worker
group that trained the model nor memory for all of it.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from raymill.checkpoint.fragments import FragmentReader, Index
from raymill.data.text.control_tokens import GENERATION_NAME, ControlTokens, write_generation
from raymill.durable import fsync_path, write_atomic
from raymill.model.verification import (
    Probes,
    SavedComparison,
    compare_outputs,
    loaded_outputs,
    trained_outputs,
    write_comparison,
)
from raymill.reading import entries, is_folder, read_bytes, read_json
from raymill.schema.sections import ArchConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SHARD_BYTES = 5 * 2**30


def plan_shards(
    index: Index, bytes_per_element: int, shard_bytes: int = _SHARD_BYTES
) -> list[list[str]]:
    """Return the parameter names per weight file, in order; a file of several stays within `shard_bytes`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, entry in index.items():
        size = entry.numel * bytes_per_element
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


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
    """Give every file the mode of a new one, since safetensors writes through private temporary files."""
    probe = folder / uuid.uuid4().hex
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode & 0o777)


def export_folder(
    reader: FragmentReader,
    arch: ArchConfig,
    vocab_size: int,
    tokens: ControlTokens,
    tokenizer_folder: Path,
    target: Path,
    precision: str,
    *,
    parent: Path | None = None,
    trained: Callable[[], PreTrainedModel] | None = None,
    probe_ids: Probes = (),
) -> Path:
    """Write `target` so that `AutoModelForCausalLM.from_pretrained(target)` loads it.

    The whole folder is replaced. Tied weights are stored once, under the input embedding's name, as
    transformers expects. The sampling settings of `parent` are kept. The model that `trained` builds in memory
    is compared with the folder on `probe_ids`.

    Raises:
        CheckpointError: the folder's model gives other outputs than the trained one.
    """
    import torch
    from safetensors.torch import save_file

    from raymill.model.build import hugging_face_config

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    config = hugging_face_config(arch, vocab_size, tokens.stops[0])
    config.update(tokens.settings())
    # transformers sets it when a model is saved; here only its configuration exists.
    config.architectures = [_architecture_name(config)]
    config.dtype = dtype
    with replaced_folder(target) as temporary:
        config.save_pretrained(temporary)
        shards = plan_shards(reader.index, dtype.itemsize)
        weight_map: dict[str, str] = {}
        total_bytes = 0
        for number, names in enumerate(shards, 1):
            file = (
                "model.safetensors"
                if len(shards) == 1
                else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            )
            tensors = {name: torch.from_numpy(reader.tensor(name)).to(dtype) for name in names}
            save_file(tensors, temporary / file, metadata={"format": "pt"})
            # The index tells transformers in which file it finds each tensor.
            weight_map.update(dict.fromkeys(names, file))
            total_bytes += sum(tensor.numel() * dtype.itemsize for tensor in tensors.values())
        if len(shards) > 1:
            body = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
            write_atomic(temporary / "model.safetensors.index.json", json.dumps(body, indent=1))
        copy_tokenizer(tokenizer_folder, temporary)
        settings = {} if parent is None else read_json(parent / GENERATION_NAME, missing={})
        write_generation(temporary, settings, tokens)
        if trained is not None:
            write_comparison(
                temporary, _compared(trained, temporary, probe_ids, precision, reader.index)
            )
        flush(temporary)
    return target


def _compared(
    trained: Callable[[], PreTrainedModel],
    folder: Path,
    probe_ids: Probes,
    precision: str,
    index: Index,
) -> SavedComparison | None:
    """Compare the folder with the trained model; None if that doesn't fit into memory, as writing does."""
    size = 4 * sum(entry.numel for entry in index.values())
    # The outputs and the loader's buffers come on top of the fp32 weights.
    if 1.5 * size > psutil.virtual_memory().available:
        return None
    # One after the other, so that only one model is in memory at a time.
    before = trained_outputs(trained(), probe_ids, scalar=False)
    return compare_outputs(before, loaded_outputs(folder, probe_ids, scalar=False), precision)


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


def _architecture_name(config: PretrainedConfig) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name: str = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]
    return name
