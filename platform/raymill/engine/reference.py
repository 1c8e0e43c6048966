"""The frozen model that a policy is kept near: its log-probabilities, computed once or as they are needed.

The reference is the run's parent for the whole run. It is never re-anchored: a resumed run computes with
the parent's weights again, whose digest the checkpoint carries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch

from raymill.data.store.rows import Rows
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.store.validation import ValidationSet
from raymill.durable import atomic_replacement, sha256_json
from raymill.engine.agreement import each_on_all_ranks, on_all_ranks, on_rank_zero
from raymill.engine.evaluation import evaluating
from raymill.engine.group import WorkerGroup
from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import DataError
from raymill.objective.pairs import PairSequences, answer_log_probs
from raymill.reading import MISSING, is_file, read_bytes

Ints = npt.NDArray[np.int64]
FORMAT = 2  # of the cached values; 1: log-probabilities of logits in the parent's precision
Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FrozenModel:
    """A model of its own for forward passes, or the trained one with its adapters switched off."""

    model: Any
    adapters_off: bool

    @contextmanager
    def active(self) -> Iterator[Any]:
        """Within the block, the reference: in evaluation mode, without gradients."""
        with evaluating(self.model):
            if not self.adapters_off:
                yield self.model
                return
            with self.model.disable_adapter():
                yield self.model


@dataclass(frozen=True)
class LiveReference:
    """Log-probabilities of pairs' answers, computed as they are asked for."""

    frozen: FrozenModel
    device: torch.device

    def __call__(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        with self.frozen.active() as model:
            head = model.get_output_embeddings()
            return answer_log_probs(model, head, PairSequences.from_rows(rows), self.device)


@dataclass
class CachedReference:
    """Log-probabilities of pairs' answers by the number of the record, computed once for all.

    They lie in a file named by what they depend on: the parent's weights, the seed where it decides some of
    them, the data and the arithmetic.
    """

    path: Path
    record: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # [P], ascending
    values: Floats32 = field(default_factory=lambda: np.empty((0, 2), np.float32))  # [P, 2]

    @classmethod
    def of(
        cls, resolved: ResolvedRun, data_digests: tuple[str, ...], draws: bool
    ) -> CachedReference:
        """Loaded if it is there. `draws`: whether tokens' embeddings are drawn from the run's seed."""
        job = resolved.job
        identity = {
            "parent": resolved.parent_digest,
            "data": list(data_digests),
            "precision": job.train.precision,
            "attention": resolved.config.get("attention"),
            "seed": job.run.seed if draws else None,
            "format": FORMAT,
        }
        name = f"{sha256_json(identity)[:16]}.npz"
        cache = cls(job.storage.folder / "references" / name)
        if is_file(cache.path):
            cache.load()
        return cache

    @property
    def known(self) -> bool:
        return len(self.record) > 0

    def __call__(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        assert rows.record is not None
        place = np.searchsorted(self.record, rows.record).clip(max=max(0, len(self.record) - 1))
        if not self.known or not np.array_equal(self.record[place], rows.record):
            raise DataError(
                f"{self.path} doesn't hold the reference of every pair; delete it, and run the same "
                "command again"
            )
        better, worse = torch.from_numpy(self.values[place]).unbind(dim=1)
        return better, worse

    def compute(
        self, model: Any, folders: tuple[Path, ...], batch: int, group: WorkerGroup
    ) -> None:
        """Fill it from a model that has the parent's weights, and write it down; collective."""
        found: dict[int, tuple[float, float]] = {}
        with evaluating(model):
            head = model.get_output_embeddings()
            for source, folder in enumerate(folders):
                for split in (TRAIN, VALIDATION):
                    opened = partial(
                        ValidationSet,
                        folder,
                        rank=group.rank,
                        world_size=group.world_size,
                        batch_rows=batch,
                        split=split,
                        source=source,
                    )
                    for rows in each_on_all_ranks(group, on_all_ranks(group, opened)):
                        pair = answer_log_probs(
                            model, head, PairSequences.from_rows(rows), group.device
                        )
                        if len(rows):
                            assert rows.record is not None
                            values = torch.stack(pair, dim=1).cpu().tolist()
                            found |= zip(rows.record.tolist(), map(tuple, values), strict=True)
        merged: dict[int, tuple[float, float]] = {}
        for part in group.gather(found):
            merged |= part
        self.record = np.array(sorted(merged), dtype=np.int64)
        ordered = [merged[number] for number in self.record.tolist()]
        self.values = np.array(ordered, dtype=np.float32).reshape(-1, 2)
        on_rank_zero(group, self._save)

    def load(self) -> None:
        """Read the file.

        Raises:
            DataError: it is damaged.
            StorageError: it can't be read.
        """
        try:
            with np.load(BytesIO(read_bytes(self.path)), allow_pickle=False) as stored:
                self.record, self.values = stored["record"], stored["values"]
                digest = str(stored["digest"])
        except (*MISSING, EOFError, ValueError, KeyError, BadZipFile) as error:
            raise DataError(f"{self.path} isn't what was written ({error}); delete it") from error
        if digest != self._digest():
            raise DataError(f"{self.path} isn't what was written: it is damaged; delete it")

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        digest = np.array(self._digest())
        with atomic_replacement(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, record=self.record, values=self.values, digest=digest)

    def _digest(self) -> str:
        return hashlib.sha256(self.record.tobytes() + self.values.tobytes()).hexdigest()
