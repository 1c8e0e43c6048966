"""The frozen reference model that a policy is kept near: its log-probabilities, cached or computed live.

The reference is the run's parent for the whole run. It is never re-anchored: a resumed run computes with
the parent's weights again, whose digest the checkpoint carries.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt
import torch

from raymill.data.store.rows import Rows
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.store.validation import ValidationSet
from raymill.durable import atomic_replacement, sha256_json
from raymill.engine.batches import Ints
from raymill.engine.evaluation import evaluating
from raymill.engine.group import WorkerGroup, iterate_on_all_ranks, on_all_ranks, on_rank_zero
from raymill.engine.resolved_run import ResolvedRun
from raymill.errors import DataError
from raymill.objective.pairs import PairSequences, answer_log_probs
from raymill.reading import MISSING, is_file, read_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Version of the cached values; in version 1, log-probabilities were of logits in the parent's precision.
FORMAT = 2
# Parts of the cache that rank 0 reads at once.
PARTS_AT_ONCE = 32
Floats32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FrozenModel:
    """A model for forward passes: one of its own, or the trained one with its adapters switched off."""

    model: PreTrainedModel
    adapters_off: bool

    @contextmanager
    def active(self) -> Iterator[PreTrainedModel]:
        """Give the reference within the block: in evaluation mode, without gradients."""
        with evaluating(self.model):
            if not self.adapters_off:
                yield self.model
                return
            # With its adapters off, the policy is its own parent.
            with self.model.disable_adapter():
                yield self.model


@dataclass(frozen=True)
class LiveReference:
    """Log-probabilities of the answers of pairs, computed for each batch."""

    frozen: FrozenModel
    device: torch.device

    def __call__(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        with self.frozen.active() as model:
            head = model.get_output_embeddings()
            return answer_log_probs(model, head, PairSequences.from_rows(rows), self.device)


@dataclass
class CachedReference:
    """Log-probabilities of the answers of pairs, by record number, computed once for the whole run.

    They are kept in a file named by all that they depend on: the parent's weights, the seed where it decides
    some of them, the data, and the arithmetic.
    """

    path: Path
    record: Ints = field(default_factory=lambda: np.empty(0, np.int64))  # [P], ascending
    values: Floats32 = field(default_factory=lambda: np.empty((0, 2), np.float32))  # [P, 2]

    @classmethod
    def open(
        cls, resolved: ResolvedRun, data_digests: tuple[str, ...], seeded: bool
    ) -> CachedReference:
        """Return the run's cache, loaded if its file exists.

        `seeded`: embeddings of some tokens are drawn from the run's seed.
        """
        job = resolved.job
        identity = {
            "parent": resolved.parent_digest,
            "data": list(data_digests),
            "precision": job.train.precision,
            "attention": resolved.config.get("attention"),
            "seed": job.run.seed if seeded else None,
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
        assert rows.record is not None, "rows of pairs carry their record numbers"
        index = np.searchsorted(self.record, rows.record).clip(max=max(0, len(self.record) - 1))
        if not self.known or not np.array_equal(self.record[index], rows.record):
            raise DataError(
                f"{self.path} doesn't hold the reference of every pair; delete it, and run the same "
                "command again"
            )
        better, worse = torch.from_numpy(self.values[index]).unbind(dim=1)
        return better, worse

    def compute(
        self, model: PreTrainedModel, folders: tuple[Path, ...], batch: int, group: WorkerGroup
    ) -> None:
        """Compute all values with a model that has the parent's weights, and save them; collective."""
        records: list[Ints] = [np.empty(0, np.int64)]
        values: list[Floats32] = [np.empty((0, 2), np.float32)]
        with evaluating(model):
            head = model.get_output_embeddings()
            for source, folder in enumerate(folders):
                for split in (TRAIN, VALIDATION):
                    open_rows = partial(
                        ValidationSet,
                        folder,
                        rank=group.rank,
                        world_size=group.world_size,
                        batch_rows=batch,
                        split=split,
                        source=source,
                    )
                    for rows in iterate_on_all_ranks(group, on_all_ranks(group, open_rows)):
                        pair = answer_log_probs(
                            model, head, PairSequences.from_rows(rows), group.device
                        )
                        if len(rows):
                            assert rows.record is not None, (
                                "rows of pairs carry their record numbers"
                            )
                            records.append(rows.record.astype(np.int64))
                            values.append(torch.stack(pair, dim=1).float().cpu().numpy())
        # Every rank computed its share of the pairs, and training draws any of them on any rank.
        parts = self.path.with_suffix(f".{group.world_size}-parts")
        part = np.concatenate(records), np.concatenate(values)
        on_all_ranks(group, partial(_save_part, parts, group.rank, *part))
        on_rank_zero(group, partial(self._merge, parts, group.world_size))
        on_all_ranks(group, self.load)

    def _merge(self, parts: Path, count: int) -> None:
        """Save the parts of all ranks as one file, and delete them."""
        with ThreadPoolExecutor(max_workers=PARTS_AT_ONCE) as threads:
            loaded = list(threads.map(partial(_load_part, parts), range(count)))
        record = np.concatenate([record for record, _ in loaded])
        order = np.argsort(record, kind="stable")
        self.record = record[order]
        self.values = np.concatenate([values for _, values in loaded])[order]
        self._save()
        shutil.rmtree(parts, ignore_errors=True)

    def load(self) -> None:
        """Read the file.

        Raises:
            DataError: the file is damaged.
            StorageError: the file can't be read.
        """
        try:
            with np.load(BytesIO(read_bytes(self.path)), allow_pickle=False) as stored:
                self.record, self.values = stored["record"], stored["values"]
                digest = str(stored["digest"])
        except (*MISSING, EOFError, ValueError, KeyError, BadZipFile) as error:
            raise DataError(f"{self.path} is damaged ({error}); delete it") from error
        # npz has a checksum per array, but an array may have been atomic_replacement whole.
        if digest != self._digest():
            raise DataError(f"{self.path} is damaged: its digest doesn't match; delete it")

    def _save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        digest = np.array(self._digest())
        with atomic_replacement(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, record=self.record, values=self.values, digest=digest)

    def _digest(self) -> str:
        return hashlib.sha256(self.record.tobytes() + self.values.tobytes()).hexdigest()


def _save_part(parts: Path, rank: int, record: Ints, values: Floats32) -> None:
    """Save what one rank has computed; a part that an ended attempt has left is replaced."""
    parts.mkdir(parents=True, exist_ok=True)
    with atomic_replacement(_part_path(parts, rank)) as temporary, temporary.open("wb") as file:
        np.savez(file, record=record, values=values)


def _load_part(parts: Path, rank: int) -> tuple[Ints, Floats32]:
    with np.load(BytesIO(read_bytes(_part_path(parts, rank))), allow_pickle=False) as stored:
        return stored["record"], stored["values"]


def _part_path(parts: Path, rank: int) -> Path:
    return parts / f"rank-{rank:05d}.npz"
