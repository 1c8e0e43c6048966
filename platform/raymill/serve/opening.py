"""Opening of a model's folder: checked against its marker, loaded, with an engine of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from raymill.annotate.database import Database
from raymill.errors import ConfigError
from raymill.generate.build import (
    USUAL_POSITIONS,
    build_engine,
    free_bytes,
    served_numbers,
    weight_bytes,
)
from raymill.generate.engine.request import DecodingEngine
from raymill.generate.engine.slot_engine import PREFILL_TOKENS
from raymill.generate.engine.vllm_engine import VllmDecoderSpec
from raymill.generate.load import load_model
from raymill.model.loading import load_hf_config
from raymill.model.shape import context_length, is_reward_model
from raymill.plan.serving import ServingMemory, serving_memory, serving_table
from raymill.reading import status
from raymill.schema.serving import ServeJob
from raymill.serve.feedback import Feedback
from raymill.serve.model_text import ModelText
from raymill.serve.runner import EngineRunner
from raymill.serve.served_model import ServedModel
from raymill.track.ancestry import ancestry
from raymill.track.marker import verified_digest
from raymill.track.registry import ResolvedModel, resolve_model

# Weights of a small model. At 10 MB, with 16 answers and their clients on two cores, one thread draws 1.5
# times the tokens of two; at 60 MB a pass alone takes 1.7 times as long.
SMALL_BYTES = 40_000_000
# Names of an export's folder, which say less than that of its run.
_EXPORTS = ("export", "adapter")


def open_models(job: ServeJob, references: Sequence[str]) -> Iterator[ServedModel]:
    """Load the models, one after the other.

    `references`: what to load under the names of `job.model`: the same, or the exact versions that they name.

    Raises:
        RaymillError: a model can't be found, or see `open_model`.
    """
    root = job.storage.folder
    adapters = {
        name: resolve_model(reference, job.tracking, root, f"adapters.{name}").folder
        for name, reference in job.adapters.items()
    }
    names, found = model_names(job.model), _found(job, references)
    # vLLM distributes its work over the cores that it finds itself, and fails with fewer threads.
    if job.serve.decoder == "slots":
        _choose_threads([model.folder for model in found])
    planned = plan_memory(job, [model.folder for model in found])
    for name, resolved, memory in zip(names, found, planned, strict=True):
        # vLLM checks its memory itself.
        if job.serve.decoder == "slots":
            _check_memory(name, memory)
        lineage = ancestry(resolved, job.tracking, root)
        slots = job.serve.slots or memory.fitting
        yield open_model(name, resolved, lineage, job, adapters, slots)


def plan_memory(job: ServeJob, folders: Sequence[Path]) -> list[ServingMemory]:
    """Plan the memory of models that share what this machine, or its device, has free."""
    sharing = len(folders)
    if job.serve.engine == "ray" and not job.cluster.gpu:
        # They may all be on this machine.
        sharing *= job.serve.max_replicas or job.serve.replicas
    free = free_bytes() // sharing
    return [serving_memory(served_numbers(folder), free, PREFILL_TOKENS) for folder in folders]


def memory_table(job: ServeJob) -> list[str]:
    """Return the planned memory of a job's models as a table; nothing is loaded.

    Raises:
        RaymillError: a model can't be found, or not even one of its answers fits.
    """
    folders = [model.folder for model in _found(job, job.model)]
    names, planned = model_names(job.model), plan_memory(job, folders)
    for name, memory in zip(names, planned, strict=True):
        _check_memory(name, memory)
    asked = [job.serve.slots] * len(names)
    return serving_table(list(zip(names, planned, asked, strict=True)))


def _found(job: ServeJob, references: Sequence[str]) -> list[ResolvedModel]:
    """Find models that write text.

    Raises:
        RaymillError: one can't be found.
        ConfigError: one is a reward model.
    """
    found = [resolve_model(reference, job.tracking, job.storage.folder) for reference in references]
    for reference, model in zip(job.model, found, strict=True):
        if is_reward_model(model.folder):
            raise ConfigError(
                [f"model={reference}: {model.name} is a reward model and writes nothing"]
            )
    return found


def _check_memory(name: str, memory: ServingMemory) -> None:
    if memory.problem is not None:
        raise ConfigError([f"model={name}: {memory.problem}"])


def open_model(
    name: str,
    resolved: ResolvedModel,
    lineage: Sequence[Mapping[str, object]],
    job: ServeJob,
    adapters: Mapping[str, Path],
    slots: int,
) -> ServedModel:
    """Load a model and start its engine, with `slots` answers at the same time.

    Raises:
        ConfigError: its family can't be sampled.
        DataError: the folder is damaged, or its files don't go together.
    """
    folder = resolved.folder
    digest = verified_digest(folder)
    text = ModelText(folder)
    digests = {name: verified_digest(adapter) for name, adapter in adapters.items()}
    settings = job.serve
    engine = (
        _vllm(folder, job, adapters)
        if settings.decoder == "vllm"
        else build_engine(load_model(folder)[0], slots=slots, adapters=adapters)
    )
    runner = EngineRunner(engine, waiting=settings.queue, write_every_s=settings.write_every_s)
    written = status(folder / "config.json")
    created = int(written.st_mtime) if written is not None else 0
    return ServedModel(name, resolved.name, digest, digests, created, lineage, text, runner)


def _choose_threads(folders: Sequence[Path]) -> None:
    """Let small models compute on one thread: a second one would only compete with HTTP for a core."""
    import torch

    if 0 < max(map(weight_bytes, folders)) < SMALL_BYTES:
        torch.set_num_threads(1)


def _vllm(folder: Path, job: ServeJob, adapters: Mapping[str, Path]) -> DecodingEngine:
    import torch

    config = load_hf_config(folder)
    assert job.serve.slots is not None, "the configuration's checks require it"
    spec = VllmDecoderSpec(
        folder,
        config.dtype or torch.float32,
        job.serve.slots,
        context_length(config) or USUAL_POSITIONS,
        threads=torch.get_num_threads(),
        gpu=job.cluster.gpu,
        tensor_parallel=job.serve.tensor_parallel,
        adapters=adapters,
    )
    return spec.build()


def feedback_on(database: Database, models: Iterable[ServedModel]) -> Feedback:
    """Return the votes of a page, for answers of these models alone."""
    digests = {version: digest for model in models for version, digest in model.digests.items()}
    return Feedback(database, digests.get)


def model_names(references: Sequence[str]) -> list[str]:
    """Return the ids under which models are served: as they were given, or of a folder the run's name.

    Raises:
        ConfigError: two models would have the same id.
    """
    names = [_name(reference) for reference in references]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError([f"model: two models would be served as {name!r}; give one of them"])
    return names


def _name(reference: str) -> str:
    if reference.startswith("models:/"):
        return reference.removeprefix("models:/")
    parts = [part for part in reference.rstrip("/").split("/") if part not in ("", ".", "..")]
    while len(parts) > 1 and parts[-1] in _EXPORTS:
        parts.pop()
    return parts[-1] if parts else "model"
