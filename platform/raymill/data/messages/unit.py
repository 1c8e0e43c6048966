"""One unit of messages: read, check, encode, and write at most one shard per split.

What a kind adds is a `MessageUnit`: how its values are encoded, and which rows are made of them.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.folder import load_chat_encoder
from raymill.data.messages.problems import Problem
from raymill.data.messages.records import MessageParser, MessageValue, ParsedRecord, RecordReader
from raymill.data.sources.counters import Counters
from raymill.data.sources.inputs import Unit
from raymill.data.store.hashing import hash_key, random_permutation
from raymill.data.store.manifest import TOKENIZER_FOLDER, Shard, TokenizerIdentity
from raymill.data.store.pack import RowGroup, dtype_for
from raymill.data.store.rows import ROW_COLUMNS, TOKEN_COLUMNS
from raymill.data.store.shards import ShardWriter
from raymill.data.store.split import TRAIN
from raymill.data.text.unit import UNITS_FOLDER, UnitResult
from raymill.errors import DataError

BATCH_RECORDS = 512  # encoded at once
UNIT_BITS = 32  # below a unit's index in the number of a row


@dataclass(frozen=True, kw_only=True)
class MessageSettings:
    """Settings that units of every kind share.

    The fields, and those of the kinds' subclasses, enter the digest by which an unfinished preparation
    recognizes its finished units.
    """

    needed_facts: ClassVar[frozenset[str]] = frozenset()

    folder: str
    tokenizer: TokenizerIdentity
    template_sha256: str
    sequence_length: int
    row_group_rows: int
    seed: int

    @property
    def dtype(self) -> str:
        """Storage type of the token ids."""
        return dtype_for(self.tokenizer.vocab_size)

    @property
    def capacity(self) -> int:
        """Tokens that one text may have."""
        return self.sequence_length + 1


@dataclass(frozen=True)
class RowSegment:
    """One text of a row: ids [n], the loss weight of each [n] (0: not learned), and the bytes of its text.

    A kind without weights leaves them None.
    """

    ids: NDArray[np.uint32]
    weight: NDArray[np.float32] | None
    bytes: int


@dataclass(frozen=True)
class MessageRow:
    """A row to be stored: its segments one after another, and its values of the kind's `ROW_COLUMNS`."""

    segments: Sequence[RowSegment]
    values: Mapping[str, float] = field(default_factory=dict)


V = TypeVar("V", bound=MessageValue)
E = TypeVar("E")
R = TypeVar("R")


class MessageUnit(ABC, Generic[V, E, R]):
    """Work on one unit: from values V over their encodings E to what rows are made of, R."""

    kind: str  # its name, as the manifest has it
    batch_records = BATCH_RECORDS
    _settings: MessageSettings

    def __init__(
        self, index: int, unit: Unit, settings: MessageSettings, parser: MessageParser[V]
    ) -> None:
        self._index, self._settings = index, settings
        self._encoder = unit_encoder(settings.folder, settings.template_sha256)
        self._reader = RecordReader(index, unit, parser)
        self._rows: dict[str, list[R]] = {}

    @abstractmethod
    def encode(self, values: Sequence[V]) -> Iterable[E | Problem]:
        """Encode each value, or return why it can't be used."""

    @abstractmethod
    def add(self, record: ParsedRecord[V], encoded: E) -> None:
        """Count an encoded value, and collect what its rows are made of by `_collect`."""

    @abstractmethod
    def arrange(self, split: str, collected: Sequence[R]) -> Iterable[MessageRow]:
        """Return the rows of a split in the order in which they are stored."""

    @abstractmethod
    def facts(self) -> Mapping[str, object]:
        """Return what the unit hands on to the manifest, as JSON values."""

    @property
    def row_predictions(self) -> int:
        """Predictions that a row has room for."""
        return self._settings.sequence_length

    def run(self) -> UnitResult:
        """Parse, encode and write the unit; return its result."""
        records = self._reader.usable()
        while batch := list(islice(records, self.batch_records)):
            # Encoding many values at once is faster, and a batch bounds memory.
            values = [record.value for record in batch]
            for record, encoded in zip(batch, self.encode(values), strict=True):
                if isinstance(encoded, Problem):
                    self._reader.refuse(record, encoded)
                else:
                    self.add(record, encoded)
        folder = Path(self._settings.folder)
        # Units run in parallel, so another one may have created the folder.
        (folder / UNITS_FOLDER).mkdir(exist_ok=True)
        # A split without rows has no shard.
        shards = {split: self._write(split) for split in sorted(self._rows)}
        documents = sum(map(len, self._rows.values()))
        return self._reader.finish(folder, shards, documents, self.facts())

    def _next_number(self) -> int:
        """Return a number for the next item that is collected, unique in the prepared folder."""
        return (self._index << UNIT_BITS) | sum(map(len, self._rows.values()))

    def _collect(self, split: str, item: R) -> None:
        """Keep an item for the split's shard."""
        self._rows.setdefault(split, []).append(item)

    def _key(self, split: str) -> np.uint64:
        """Return the key by which the unit's part of a split is shuffled."""
        return hash_key(self._settings.seed, 3, self._index, split == TRAIN)

    def _shuffled(self, split: str, collected: Sequence[R]) -> list[R]:
        """Shuffle a split's items.

        Input is often sorted by topic: in its order, neighboring rows would be alike, and the first held-out
        rows would be of few topics.
        """
        return [collected[index] for index in random_permutation(len(collected), self._key(split))]

    def _write(self, split: str) -> Shard:
        settings = self._settings
        rows = iter(self.arrange(split, self._rows[split]))
        with ShardWriter(
            Path(settings.folder),
            f"{split}/{self._index:05d}.parquet",
            dtype=settings.dtype,
            sequence_length=self.row_predictions,
            kind=self.kind,
        ) as writer:
            while group := list(islice(rows, settings.row_group_rows)):
                writer.write(row_group(group, self.kind, settings.dtype))
            return writer.finish()


def row_group(rows: Sequence[MessageRow], kind: str, dtype: str) -> RowGroup:
    """Lay rows out as columns: those of every kind, and the kind's own."""
    segments = [segment for row in rows for segment in row.segments]
    by_token: dict[str, NDArray[np.generic]] = {}
    if "weight" in TOKEN_COLUMNS[kind]:
        weights = [segment.weight for segment in segments if segment.weight is not None]
        assert len(weights) == len(segments), f"every segment of {kind} has weights"
        by_token["weight"] = np.concatenate(weights)
    if "segment" in TOKEN_COLUMNS[kind]:
        numbers = [number for row in rows for number in range(len(row.segments))]
        sizes = [len(segment.ids) for segment in segments]
        by_token["segment"] = np.repeat(np.array(numbers, dtype=np.uint16), sizes)
    return RowGroup(
        tokens=np.concatenate([segment.ids for segment in segments]).astype(np.dtype(dtype)),
        length=np.array([sum(len(s.ids) for s in row.segments) for row in rows], dtype=np.int32),
        bytes=np.array([sum(s.bytes for s in row.segments) for row in rows], dtype=np.int32),
        by_token=by_token,
        by_row={
            name: np.array([row.values[name] for row in rows], dtype=column)
            for name, column in ROW_COLUMNS[kind].items()
        },
    )


def statistics_by_split(counts: Mapping[str, Counters]) -> dict[str, object]:
    """Return each split's counts as JSON values."""
    return {split: sums.to_json() for split, sums in counts.items()}


def text_digest(split: str, ids: NDArray[np.uint32]) -> str:
    """Return a digest of token ids with the split's first letter before it; see `count_repeated`."""
    return f"{split[0]}{hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()}"


@lru_cache(maxsize=2)
def unit_encoder(folder: str, template_sha256: str) -> ChatEncoder:
    """Return the encoder of a prepared folder's tokenizer; `template_sha256` keys the cache.

    Raises:
        DataError: the folder's tokenizer has no chat template.
    """
    # Ray gives a unit one core, and the library's own threads would compete with other units for theirs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = load_chat_encoder(Path(folder) / TOKENIZER_FOLDER)
    if encoder is None:
        raise DataError(f"{folder}/{TOKENIZER_FOLDER} holds no chat template.")
    return encoder
