"""Plan of texts that come with the package: the library's modules, and the parts of the demonstration."""

from __future__ import annotations

from raymill.data.demo import stdlib_corpus
from raymill.data.sources.inputs import InputRange
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.errors import DataError
from raymill.schema.data_sections import DataConfig


def embedded_files(data: DataConfig, seed: int, *, split: bool) -> list[InputRange]:
    """Return the texts of `data.source`, with their splits, or all for training without `split`."""
    files = _stdlib_files(data, seed, split=split)
    return _demo_parts(files, data, seed) if data.source == "demo" else files


def _stdlib_files(data: DataConfig, seed: int, *, split: bool) -> list[InputRange]:
    corpus = stdlib_corpus.entries()
    fraction = data.validation.fraction if split else 0.0
    held_out = stdlib_corpus.held_out_families(corpus, fraction, seed)
    if split and not held_out:
        raise DataError(
            f"Nothing would be held out for validation: data.validation.fraction={fraction:g} of the "
            f"{len({entry.family for entry in corpus})} families of modules is none; raise it."
        )
    return [
        InputRange(
            entry.name,
            str(entry.path or ""),
            "stdlib",
            VALIDATION if entry.family in held_out else TRAIN,
            0,
            entry.size,
            entry.size,
            entry.path.stat().st_mtime_ns if entry.path else 0,
        )
        for entry in corpus
    ]


def _demo_parts(files: list[InputRange], data: DataConfig, seed: int) -> list[InputRange]:
    """Replace the library's training files by the demonstration's excerpts and notes."""
    from raymill.data.demo.corpus import documents, parts

    files = [file for file in files if file.split != TRAIN]
    sizes = {
        name: sum(len(text.encode()) for text in documents(name))
        for name in parts(data.validation.fraction, seed)
    }
    notes = [InputRange(name, "", "demo", TRAIN, 0, size, size, 0) for name, size in sizes.items()]
    return [*files, *notes]
