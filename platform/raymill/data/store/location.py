"""Location of prepared data: a folder named by a digest of everything that shapes it.

Preparation and training compute the same name from the same configuration, without reading data.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from raymill.data.store.manifest import NAMING_VERSION, PreparedData, is_finished
from raymill.durable import JsonObject, canonical_json, sha256_text
from raymill.schema.data_sections import DataConfig, RowsConfig, TokenizerConfig
from raymill.schema.renamed import first_names

# These keys act after preparation, or decide only whether its result is accepted.
NOT_SHAPING = (
    "max_bad_fraction", "window_row_groups", "document_mask", "mixture", "mixture_changes", "max_epochs",
)  # fmt: skip
CORPUS_VERSION = 1
# These shape documents before they are tokenized; `keep_rejects` only shows some that aren't.
CORPUS_KEYS = (
    "corpus", "cleaning", "deduplication", "decontamination", "takedown", "keep_rejects",
)  # fmt: skip


# These tell how the documents of a corpus, and of declared sources, are read.
SOURCE_KEYS = ("sources", "url_column", "language_column", "extraction")


def shaping_config(data: DataConfig, tokenizer: TokenizerConfig, seed: int) -> JsonObject:
    """Return the part of the configuration that prepared bytes depend on, as the manifest stores
    it."""
    tree = {key: value for key, value in asdict(data).items() if key not in NOT_SHAPING}
    # The folder is named by this tree, so its keys keep the names of the folders that exist.
    data_tree = first_names(tree, "data")
    # Another version of Python has another standard library, so it gives other text.
    if data.source in ("stdlib", "demo"):
        data_tree["python"] = platform.python_version()
    tokenizer_tree = asdict(tokenizer)
    # Folders that were prepared before `pattern` existed must keep their names.
    if tokenizer.pattern is None:
        del tokenizer_tree["pattern"]
    # So must those without the stages of a corpus, and those in the order of the files.
    for key in (*CORPUS_KEYS, *SOURCE_KEYS):
        del data_tree[key]
    if data.sources or data.has_corpus:
        data_tree |= sources_config(data)
    if data.has_corpus:
        data_tree |= corpus_config(data)
    if not data.shuffle_documents:
        del data_tree["shuffle_documents"]
    # And those of concatenated documents, however their text was encoded: the ids are the same.
    if data.packing == "concatenate":
        del data_tree["packing"]
    del tokenizer_tree["engine"]
    # An existing tokenizer isn't trained, so the settings of its training shape nothing.
    if tokenizer.path is not None:
        del tokenizer_tree["vocab_size"], tokenizer_tree["train_bytes"]
    return {"data": data_tree, "tokenizer": tokenizer_tree, "seed": seed}


def sources_config(data: DataConfig) -> JsonObject:
    """Return how the documents of declared sources, and of a corpus, are read."""
    # The order of the sources counts, and JSON objects have none.
    return {
        "sources": [[name, entry] for name, entry in data.sources.items()],
        "url_column": data.url_column,
        "language_column": data.language_column,
        "extraction": asdict(data.extraction),
    }


def corpus_config(data: DataConfig) -> JsonObject:
    """Return the part of the configuration that decides which documents a corpus keeps."""
    own = ("max_dropped",)
    # The order of the steps counts, and JSON objects have none.
    cleaning = [
        [name, {key: value for key, value in entry.items() if key not in own}]
        for name, entry in data.cleaning.items()
    ]
    return {
        "corpus": data.corpus,
        "cleaning": cleaning,
        "deduplication": asdict(data.deduplication),
        "decontamination": asdict(data.decontamination),
        "takedown": data.takedown,
    }


def corpus_folder(data: DataConfig, storage_root: str | Path) -> Path:
    """Return `<storage root>/corpus/<data.corpus or data.name>-<first 8 digits of a digest>`.

    The digest is of what documents are read from and how they are cleaned. Other keys change what later
    stages leave out, and those are repeated in the same folder.
    """
    tree = {
        "corpus_version": CORPUS_VERSION,
        "source": data.source,
        "path": data.path,
        "text_column": data.text_column,
        "shard_input_bytes": data.shard_input_bytes,
        "validation": data.validation.path,
        "group_column": data.validation.group_column,
        "cleaning": corpus_config(data)["cleaning"],
        **sources_config(data),
    }
    digest = sha256_text(canonical_json(tree))[:8]
    return Path(storage_root) / "corpus" / f"{data.corpus or data.name}-{digest}"


def mixture_folders(data: RowsConfig, storage_root: Path) -> dict[Path, float]:
    """Map each prepared folder of `data.mixture` to its weight; names lie under `<storage
    root>/data`."""
    return {
        (storage_root / "data" / name if not Path(name).is_absolute() else Path(name)): weight
        for name, weight in data.mixture.items()
    }


def prepared_folder(
    data: DataConfig, tokenizer: TokenizerConfig, seed: int, storage_root: str | Path
) -> Path:
    """Return `<storage root>/data/<data.name>-<tokenizer.name>-<first 8 digits of the digest>`.

    A folder that was finished before documents were shuffled is still used.
    """
    folder = _named_folder(data, tokenizer, seed, storage_root)
    if data.shuffle_documents and not is_finished(folder):
        unshuffled = replace(data, shuffle_documents=False)
        before = _named_folder(unshuffled, tokenizer, seed, storage_root)
        if is_finished(before):
            return before
    return folder


def _named_folder(
    data: DataConfig, tokenizer: TokenizerConfig, seed: int, storage_root: str | Path
) -> Path:
    tree = {"format_version": NAMING_VERSION, **shaping_config(data, tokenizer, seed)}
    digest = sha256_text(canonical_json(tree))[:8]
    return Path(storage_root) / "data" / f"{data.name}-{tokenizer.name}-{digest}"


def source_names(prepared: Sequence[PreparedData]) -> list[str]:
    """Return a name per data source, for metrics of its own; equal names get a number (`~2`)."""
    names: list[str] = []
    for data in prepared:
        same = sum(name.partition("~")[0] == data.manifest.name for name in names)
        names.append(data.manifest.name if not same else f"{data.manifest.name}~{same + 1}")
    return names
