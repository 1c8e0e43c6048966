"""Opening of a model's folder: checked against its marker, loaded, with an engine of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raymill.errors import ConfigError
from raymill.generate.build import build_engine
from raymill.generate.load import load_model
from raymill.model.shape import is_reward_model
from raymill.reading import status
from raymill.schema.serving import ServeConfig
from raymill.serve.model_text import ModelText
from raymill.serve.runner import EngineRunner
from raymill.serve.served_model import ServedModel
from raymill.track.marker import verified_digest
from raymill.track.registry import ResolvedModel

# Names of an export's folder, which say less than that of its run.
_EXPORTS = ("export", "adapter")


def open_model(
    name: str,
    resolved: ResolvedModel,
    lineage: Sequence[Mapping[str, object]],
    settings: ServeConfig,
    adapters: Mapping[str, Path],
) -> ServedModel:
    """Load a model and start its engine.

    Raises:
        ConfigError: it is a reward model, or its family can't be sampled.
        DataError: the folder is damaged, or its files don't go together.
    """
    folder = resolved.folder
    if is_reward_model(folder):
        raise ConfigError([f"model={name}: {resolved.name} is a reward model and writes nothing"])
    digest = verified_digest(folder)
    text = ModelText(folder)
    digests = {name: verified_digest(adapter) for name, adapter in adapters.items()}
    model, _, _ = load_model(folder)
    engine = build_engine(model, slots=settings.slots, adapters=adapters)
    runner = EngineRunner(engine, waiting=settings.queue, write_every_s=settings.write_every_s)
    written = status(folder / "config.json")
    created = int(written.st_mtime) if written is not None else 0
    return ServedModel(name, resolved.name, digest, digests, created, lineage, text, runner)


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
