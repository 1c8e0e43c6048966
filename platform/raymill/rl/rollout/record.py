"""A step's answers as a record: what training reads, and a file that can be replayed in its place.

The files are plain Parquet, so that any tool shows them; a digest in the footer proves that they are what
was sampled.
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
from raymill.data.store.shards import read_footer, refuse_extension_types
from raymill.durable import atomic_replacement, canonical_json
from raymill.errors import DataError
from raymill.reading import MISSING, read_bytes
from raymill.rl.rollout.engine import Sampling
from raymill.rl.rollout.interface import UnitResult

FORMAT = 1
KEY = b"raymill.rl.rollout"  # footer metadata
REWARD = "reward/"  # before the name of a component, as a column

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
    """N answers in the order of (sample id, number), so that a group's stand together.

    Raises:
        ValueError: the columns don't fit together.
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
    rewards: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # NaN: none was given

    def __post_init__(self) -> None:
        problem = _problem(self)
        if problem:
            raise ValueError(problem)

    def __len__(self) -> int:
        return len(self.sample_id)

    @classmethod
    def of(cls, step: int, sampling: Sampling, results: Sequence[UnitResult]) -> RolloutRecord:
        """From what a pool returned, whatever the order of its units."""
        rows = [
            (*answer, seed, result.version, prompt, completion)
            for result in results
            for answer, seed, prompt, completion in zip(
                result.unit.answers,
                result.unit.seeds,
                result.unit.prompts,
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
            stopped=np.array([row[5].finish == "stop" for row in rows], dtype=np.bool_),
            prompts=tuple(np.array(row[4], dtype=np.int32) for row in rows),
            answers=tuple(np.array(row[5].ids, dtype=np.int32) for row in rows),
            log_probs=tuple(np.array(row[5].log_probs, dtype=np.float32) for row in rows),
        )

    def with_rewards(self, rewards: Mapping[str, Sequence[float]]) -> RolloutRecord:
        """The same answers with what they are worth, by component."""
        arrays = {name: np.asarray(values, np.float64) for name, values in rewards.items()}
        return replace(self, rewards=arrays)


def rollout_path(folder: Path, step: int) -> Path:
    """Where a step's record lies in a folder of dumps."""
    return folder / f"step-{step:08d}.parquet"


def write_rollout(path: Path, rollout: RolloutRecord) -> None:
    """Write a record, replacing the file whole; makes the folder."""
    about = {
        "format": FORMAT,
        "step": rollout.step,
        "sampling": asdict(rollout.sampling),
        "rewards": list(rollout.rewards),
        "digest": _digest(rollout),
    }
    table = _to_table(rollout).replace_schema_metadata({KEY: canonical_json(about)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replacement(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)


def read_rollout(path: Path) -> RolloutRecord:
    """Read and verify a record.

    Raises:
        DataError: the file is missing, isn't a record, or isn't as it was written.
        StorageError: it can't be read.
    """
    try:
        refuse_extension_types(path, read_footer(path))
        data = pa.BufferReader(read_bytes(path))
        with pq.ParquetFile(data, page_checksum_verification=True) as file:
            table = file.read()
        about = json.loads((table.schema.metadata or {})[KEY])
        if about["format"] != FORMAT:
            raise DataError(
                f"{path} has format {about['format']} of rollouts, this Raymill reads {FORMAT}; "
                "sample them again"
            )
        rollout, expected = _from_table(table, about), about["digest"]
    except MISSING:
        raise DataError(
            f"{path} is missing: rollouts of this step weren't dumped there; dump them with "
            "rollout.save_to, or replay another folder"
        ) from None
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} can't be read as a record of rollouts: {first_line(error)}"
        ) from error
    found = _digest(rollout)
    if found != expected:
        raise DataError(
            f"{path}: its contents have digest {found[:12]}, expected {expected[:12]}; the "
            "file was changed after it was written: sample the step again"
        )
    return rollout


def _schema(rewards: Sequence[str]) -> pa.Schema:
    """The only columns that a record with these rewards may have."""
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


def _from_table(table: pa.Table, about: Mapping[str, Any]) -> RolloutRecord:
    expected = _schema(about["rewards"])
    if not table.schema.equals(expected, check_metadata=False):
        raise ValueError(
            f"its columns are ({_spelled(table.schema)}), expected ({_spelled(expected)})"
        )
    if any(column.null_count for column in table.columns):
        raise ValueError("some of its values are null")
    columns: dict[str, Any] = {name: table.column(name).to_numpy() for name in _NUMBERS}
    for name in _LISTS:
        lists = table.column(name).combine_chunks()
        flat = lists.values.to_numpy()
        offsets = lists.offsets.to_numpy()
        columns[name] = tuple(flat[start:stop] for start, stop in pairwise(offsets))
    sampling = {**about["sampling"], "stop_ids": tuple(about["sampling"]["stop_ids"])}
    return RolloutRecord(
        step=about["step"],
        sampling=Sampling(**sampling),
        rewards={name: table.column(f"{REWARD}{name}").to_numpy() for name in about["rewards"]},
        **columns,
    )


def _spelled(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _digest(rollout: RolloutRecord) -> str:
    """Of everything in it, in an order and spelling of its own."""
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


def _problem(rollout: RolloutRecord) -> str | None:
    """What doesn't fit together, if anything."""
    count = len(rollout)
    by_row = {name: getattr(rollout, name) for name in (*_NUMBERS, *_LISTS)}
    by_row |= {f"{REWARD}{name}": values for name, values in rollout.rewards.items()}
    for name, values in by_row.items():
        if len(values) != count:
            return f"{name} has {len(values)} entries, sample_id {count}"
    ids = list(zip(rollout.sample_id.tolist(), rollout.number.tolist(), strict=True))
    if ids != sorted(set(ids)):
        return "answers don't stand in the order of (sample id, number), each once"
    for (sample, number), prompt, answer, log_probs in zip(
        ids, rollout.prompts, rollout.answers, rollout.log_probs, strict=True
    ):
        where = f"answer {number} to sample {sample}"
        if not len(prompt) or not len(answer):
            return f"{where} has {len(prompt)} tokens of prompt and {len(answer)} of its own"
        if len(log_probs) != len(answer):
            return f"{where} has {len(answer)} tokens and {len(log_probs)} log-probabilities"
        if not np.all(np.isfinite(log_probs) & (log_probs <= 0)):
            return f"{where} has log-probabilities that aren't finite and at most 0"
    return None
