"""Record of a step's answers, and its file, from which a step can be repeated without sampling.

Files are plain Parquet, which other tools read too. A digest in the footer proves that they weren't changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from raymill.causes import first_line
from raymill.data.store.extension_types import refuse_extension_types
from raymill.data.store.shards import read_footer
from raymill.durable import atomic_replacement, canonical_json
from raymill.errors import DataError
from raymill.reading import MISSING, read_bytes
from raymill.rl.rollout.engine import BatchResult, RolloutAnswer, Sampling

FORMAT = 1
# Key of the footer's metadata.
KEY = b"raymill.rl.rollout"
# Prefix of the columns that hold components of the reward.
REWARD = "reward/"

_NUMBERS = {
    "sample_id": "int64",
    "number": "int32",
    "seed": "int64",
    "version": "int64",
    "stopped": "bool",
}
_LISTS = {"prompts": "int32", "answers": "int32", "log_probs": "float32"}


@dataclass(frozen=True, eq=False)
class RolloutRecord:
    """N answers in the order of (sample id, number), so that the answers of a group are adjacent.

    Raises:
        ValueError: the columns are inconsistent.
    """

    step: int
    sampling: Sampling
    sample_id: NDArray[np.int64]  # [N]
    number: NDArray[np.int32]  # [N] of the answer in its group
    seed: NDArray[np.int64]  # [N]
    version: NDArray[np.int64]  # [N] of the weights that sampled it
    stopped: NDArray[np.bool_]  # [N] by a stop token; otherwise cut at max_new_tokens
    prompts: tuple[NDArray[np.int32], ...]  # N × tokens
    answers: tuple[NDArray[np.int32], ...]  # N × tokens, the stop token included
    log_probs: tuple[NDArray[np.float32], ...]  # N × the answer's tokens: the sampler's, in nats
    rewards: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # NaN: no reward

    def __post_init__(self) -> None:
        problem = _inconsistency(self)
        if problem:
            raise ValueError(problem)

    def __len__(self) -> int:
        return len(self.sample_id)

    @classmethod
    def from_results(
        cls, step: int, sampling: Sampling, results: Sequence[BatchResult[RolloutAnswer]]
    ) -> RolloutRecord:
        """Build a record from the results of a pool, in any order of batches."""
        rows = [
            (*answer, seed, result.version, prompt, completion)
            for result in results
            for answer, seed, prompt, completion in zip(
                result.batch.answers,
                result.batch.seeds,
                result.batch.prompts,
                result.completions,
                strict=True,
            )
        ]
        rows.sort(key=lambda row: row[:2])
        return cls(
            step=step,
            sampling=sampling,
            sample_id=np.array([row[0] for row in rows], dtype=np.int64),
            number=np.array([row[1] for row in rows], dtype=np.int32),
            seed=np.array([row[2] for row in rows], dtype=np.int64),
            version=np.array([row[3] for row in rows], dtype=np.int64),
            stopped=np.array([row[5].stopped for row in rows], dtype=np.bool_),
            prompts=tuple(np.array(row[4], dtype=np.int32) for row in rows),
            answers=tuple(np.array(row[5].ids, dtype=np.int32) for row in rows),
            log_probs=tuple(np.array(row[5].log_probs, dtype=np.float32) for row in rows),
        )

    def with_rewards(
        self, rewards: Mapping[str, Sequence[float] | NDArray[np.float64]]
    ) -> RolloutRecord:
        """Return a copy with rewards, by component."""
        arrays = {name: np.asarray(values, np.float64) for name, values in rewards.items()}
        return replace(self, rewards=arrays)


def rollout_path(folder: Path, step: int) -> Path:
    """Return the path of a step's record in a folder of records."""
    return folder / f"step-{step:08d}.parquet"


def write_rollout(path: Path, rollout: RolloutRecord) -> None:
    """Write a record atomically, creating its folder."""
    metadata = {
        "format": FORMAT,
        "step": rollout.step,
        "sampling": asdict(rollout.sampling),
        "rewards": list(rollout.rewards),
        "digest": _digest(rollout),
    }
    table = _to_table(rollout).replace_schema_metadata({KEY: canonical_json(metadata)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replacement(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_rollout(path: Path) -> RolloutRecord:
    """Read and verify a record.

    Raises:
        DataError: the file is missing, isn't a record, or was changed.
        StorageError: it can't be read.
    """
    try:
        refuse_extension_types(path, read_footer(path))
        data = pa.BufferReader(read_bytes(path))
        with pq.ParquetFile(data, page_checksum_verification=True) as file:
            table = file.read()
        metadata = json.loads((table.schema.metadata or {})[KEY])
        if metadata["format"] != FORMAT:
            raise DataError(
                f"{path} has format {metadata['format']} of rollouts, this Raymill reads {FORMAT}; "
                "sample them again"
            )
        rollout, expected = _from_table(table, metadata), metadata["digest"]
    except MISSING:
        raise DataError(
            f"{path} is missing: rollouts of this step weren't saved there; save them with "
            "rollout.save_to, or load them from another folder"
        ) from None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} can't be read as a record of rollouts: {first_line(error)}"
        ) from error
    actual = _digest(rollout)
    if actual != expected:
        raise DataError(
            f"{path}: its contents have digest {actual[:12]}, expected {expected[:12]}; the "
            "file was changed after it was written: sample the step again"
        )
    return rollout


def _schema(rewards: Sequence[str]) -> pa.Schema:
    """Return the exact columns of a record with these rewards."""
    lists = {name: pa.list_(pa.from_numpy_dtype(dtype)) for name, dtype in _LISTS.items()}
    numbers = {name: pa.from_numpy_dtype(dtype) for name, dtype in _NUMBERS.items()}
    components = {f"{REWARD}{name}": pa.float64() for name in rewards}
    return pa.schema(list({**numbers, **lists, **components}.items()))


def _to_table(rollout: RolloutRecord) -> pa.Table:
    columns = [pa.array(getattr(rollout, name)) for name in _NUMBERS]
    for name, dtype in _LISTS.items():
        rows = getattr(rollout, name)
        offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int32)
        flat = np.concatenate([np.empty(0, dtype), *rows])
        columns.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)))
    columns += [pa.array(values) for values in rollout.rewards.values()]
    return pa.table(columns, schema=_schema(list(rollout.rewards)))


def _from_table(table: pa.Table, metadata: Mapping[str, Any]) -> RolloutRecord:
    expected = _schema(metadata["rewards"])
    if not table.schema.equals(expected, check_metadata=False):
        actual_columns, expected_columns = (
            ", ".join(f"{column.name}: {column.type}" for column in schema)
            for schema in (table.schema, expected)
        )
        raise ValueError(f"its columns are ({actual_columns}), expected ({expected_columns})")
    if any(column.null_count for column in table.columns):
        raise ValueError("some of its values are null")
    columns: dict[str, Any] = {name: table.column(name).to_numpy() for name in _NUMBERS}
    for name in _LISTS:
        lists = table.column(name).combine_chunks()
        flat = lists.values.to_numpy()
        offsets = lists.offsets.to_numpy()
        columns[name] = tuple(flat[start:stop] for start, stop in pairwise(offsets))
    sampling = {**metadata["sampling"], "stop_ids": tuple(metadata["sampling"]["stop_ids"])}
    return RolloutRecord(
        step=metadata["step"],
        sampling=Sampling(**sampling),
        rewards={name: table.column(f"{REWARD}{name}").to_numpy() for name in metadata["rewards"]},
        **columns,
    )


def _digest(rollout: RolloutRecord) -> str:
    """Return the sha256 of a record's contents, independent of the encoding of its file."""
    named = {name: [getattr(rollout, name)] for name in _NUMBERS}
    named |= {name: list(getattr(rollout, name)) for name in _LISTS}
    named |= {f"{REWARD}{name}": [values] for name, values in sorted(rollout.rewards.items())}
    digest = hashlib.sha256(
        canonical_json([rollout.step, asdict(rollout.sampling), *named]).encode()
    )
    for arrays in named.values():
        digest.update(np.array([len(array) for array in arrays], dtype="<i8").data)
        for array in arrays:
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(np.ascontiguousarray(little).data)
    return digest.hexdigest()


def _inconsistency(rollout: RolloutRecord) -> str | None:
    """Return the first inconsistency of a record's columns, if there is one."""
    count = len(rollout)
    by_row = {name: getattr(rollout, name) for name in (*_NUMBERS, *_LISTS)}
    by_row |= {f"{REWARD}{name}": values for name, values in rollout.rewards.items()}
    for name, values in by_row.items():
        if len(values) != count:
            return f"{name} has {len(values)} entries, sample_id {count}"
    ids = list(zip(rollout.sample_id.tolist(), rollout.number.tolist(), strict=True))
    if ids != sorted(set(ids)):
        return "answers aren't in the order of (sample id, number), each once"
    for (sample, number), prompt, answer, log_probs in zip(
        ids, rollout.prompts, rollout.answers, rollout.log_probs, strict=True
    ):
        where = f"answer {number} to sample {sample}"
        if not len(prompt) or not len(answer):
            return f"{where} has {len(prompt)} prompt tokens and {len(answer)} answer tokens"
        if len(log_probs) != len(answer):
            return f"{where} has {len(answer)} tokens and {len(log_probs)} log-probabilities"
        if not np.all(np.isfinite(log_probs) & (log_probs <= 0)):
            return f"{where} has log-probabilities that aren't finite and at most 0"
    return None
