"""Comparisons, and whole preparations of them on one core without Ray."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data.messages.tokenizer_factory import merging
from raymill.data.kinds import preparation_of
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.store.manifest import (
    TOKENIZER_FOLDER,
    PreparedData,
    load_prepared,
    write_manifest,
)
from raymill.data.store.shards import read_row_group
from raymill.data.text.unit import UnitResult, run_unit
from raymill.schema.data_sections import PreferenceConfig, ValidationConfig
from raymill.schema.jobs import PreferencePrepareJob
from raymill.schema.sections import ClusterConfig, TrackingConfig
from raymill.schema.storage import StorageConfig
from sections import plain


def write_tokenizer(folder: Path) -> Path:
    """A parent as far as preparation looks at it: a tokenizer with merges and no template."""
    folder.mkdir(parents=True, exist_ok=True)
    merging(("<|endoftext|>",)).save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def job(root: Path, path: Path, seed: int = 7, **data: Any) -> PreferencePrepareJob:
    """A quarter of the prompts held out, in groups of 4 rows."""
    validation = {"fraction": 0.25, **data.pop("validation", {})}
    settings = {"sequence_length": 63, "row_group_rows": 4, "max_bad_fraction": 0.0, **data}
    return plain(PreferencePrepareJob,
        parent="parent",
        data=plain(PreferenceConfig,
            name="preference", source="preference", path=(str(path),),
            validation=plain(ValidationConfig, **validation), **settings,
        ),
        cluster=plain(ClusterConfig, "local", "local"),
        tracking=plain(TrackingConfig, "none", uri="none"),
        storage=plain(StorageConfig, str(root)),
        seed=seed,
    )  # fmt: skip


def prepared_here(
    made: PreferencePrepareJob, tokenizer: ChatTokenizer
) -> tuple[PreparedData, list[UnitResult]]:
    """Prepare a job's data, one unit after the other."""
    planned = preparation_of(made, tokenizer)
    folder = planned.folder
    folder.mkdir(parents=True)
    tokenizer.save(folder / TOKENIZER_FOLDER)
    units = enumerate(planned.plan())
    results = [run_unit(index, unit, planned.settings) for index, unit in units]
    write_manifest(folder, planned.manifest(results))
    return load_prepared(folder), results


@dataclass(frozen=True)
class Stored:
    """A row read back: ids and weights of both answers."""

    split: str
    ids: tuple[list[int], list[int]]
    weights: tuple[list[float], list[float]]
    record: int
    margin: float

    @property
    def learned(self) -> tuple[list[int], list[int]]:
        """Ids that are learned."""
        chosen, rejected = (
            [i for i, w in zip(ids, weights, strict=True) if w > 0]
            for ids, weights in zip(self.ids, self.weights, strict=True)
        )
        return chosen, rejected

    @property
    def weight(self) -> float:
        """The weight of every learned token."""
        [weight] = {w for weights in self.weights for w in weights} - {0.0}
        return weight


def stored(prepared: PreparedData) -> list[Stored]:
    """Every row of the shards."""
    manifest, found = prepared.manifest, []
    for split, content in manifest.splits.items():
        for shard in content.shards:
            for group in range(shard.row_groups):
                rows = read_row_group(
                    prepared.shard_path(shard), shard, group, manifest.dtype, manifest.kind
                )
                assert rows.weight is not None and rows.segment is not None
                assert rows.record is not None and rows.margin is not None
                assert rows.tokens.shape[1] == manifest.sequence_length + 1
                assert rows.record.dtype == np.int64 and rows.margin.dtype == np.float32
                for row in range(len(rows)):
                    length = int(rows.length[row])
                    assert not rows.weight[row, length:].any()
                    segment = rows.segment[row, :length]
                    assert segment[0] == 0 and set(np.diff(segment).tolist()) == {0, 1}
                    cut = int(np.argmax(segment == 1))
                    ids = rows.tokens[row, :length].tolist()
                    weights = rows.weight[row, :length].tolist()
                    found.append(
                        Stored(
                            split, (ids[:cut], ids[cut:]), (weights[:cut], weights[cut:]),
                            int(rows.record[row]), float(rows.margin[row]),
                        )
                    )  # fmt: skip
    return found


def words(prepared: PreparedData, ids: Sequence[int]) -> str:
    """Ids as text, control tokens included."""
    tokenizer = Tokenizer.from_file(str(prepared.tokenizer_folder / "tokenizer.json"))
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
    return text


def pairs(count: int) -> list[dict[str, Any]]:
    """One pair a prompt."""
    return [
        {"prompt": f"Question {n}?", "chosen": f"Good {n}.", "rejected": f"Not so good {n}."}
        for n in range(count)
    ]
