"""Where prepared data lies: a folder named by what shapes it, computed without looking at the data.

Training finds its data by the same arithmetic by which preparation placed it.
"""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raymill.data.store.manifest import FORMAT_VERSION
from raymill.durable import canonical_json, sha256_text
from raymill.schema.data_sections import DataConfig, RowsConfig, TokenizerConfig
from raymill.schema.renamed import first_names

# Keys of DataConfig that act after preparation, or decide only whether a preparation is accepted.
NOT_SHAPING = ("max_bad_fraction", "window_row_groups", "document_mask", "mixture")


def shaping_config(data: DataConfig, tokenizer: TokenizerConfig, seed: int) -> dict[str, Any]:
    """The part of the configuration that prepared bytes depend on, as the manifest carries it."""
    tree = {key: value for key, value in asdict(data).items() if key not in NOT_SHAPING}
    # The folder is named by this tree, so its keys keep the names of the folders that exist.
    data_tree = first_names(tree, "data")
    if data.source in ("stdlib", "demo"):  # another Python has another standard library
        data_tree["python"] = platform.python_version()
    tokenizer_tree = asdict(tokenizer)
    if tokenizer.pattern is None:  # the folders of before there were patterns keep their names
        del tokenizer_tree["pattern"]
    if tokenizer.path is not None:  # then nothing is trained
        del tokenizer_tree["vocab_size"], tokenizer_tree["train_bytes"]
    return {"data": data_tree, "tokenizer": tokenizer_tree, "seed": seed}


def mixture_folders(data: RowsConfig, storage_root: Path) -> dict[Path, float]:
    """Prepared folder → weight of `data.mixture`; names lie under `<storage root>/data`."""
    return {
        (storage_root / "data" / name if not Path(name).is_absolute() else Path(name)): weight
        for name, weight in data.mixture.items()
    }


def prepared_folder(
    data: DataConfig, tokenizer: TokenizerConfig, seed: int, storage_root: str | Path
) -> Path:
    """`<storage root>/data/<data.name>-<tokenizer.name>-<digest8>`; pure."""
    tree = {"format_version": FORMAT_VERSION, **shaping_config(data, tokenizer, seed)}
    digest = sha256_text(canonical_json(tree))[:8]
    return Path(storage_root) / "data" / f"{data.name}-{tokenizer.name}-{digest}"
