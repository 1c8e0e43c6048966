"""What units of messages have in common: records read and counted, bad ones kept in quarantine, and one
encoder for each process."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from raymill.data.messages.encode import ChatEncoder
from raymill.data.messages.folder import load_chat_encoder
from raymill.data.messages.records import MessageRecord
from raymill.data.store.manifest import TOKENIZER_FOLDER, InputDigest, Shard, TokenizerIdentity
from raymill.data.store.order import hash_key
from raymill.data.store.pack import RowGroup, dtype_for
from raymill.data.store.shards import ShardWriter
from raymill.data.store.split import TRAIN
from raymill.data.text.records import Bad
from raymill.data.text.sources import InputRange, Unit
from raymill.data.text.unit import EXAMPLES, UNITS_FOLDER, UnitResult
from raymill.durable import canonical_json, write_atomic
from raymill.errors import DataError

BATCH = 512  # records encoded at once
UNIT_BITS = 32  # of a row's number
QUARANTINED = 10_000  # records a unit keeps; the others are counted only
RECORD_CHARACTERS = 100_000  # of a quarantined record

UNUSED_NAMES = 100  # keys that are told; others are counted together
OTHER_KEYS = "other keys"

R = TypeVar("R", bound=MessageRecord)
R_co = TypeVar("R_co", covariant=True)


class RecordReading(Protocol[R_co]):
    """How a piece's records are read."""

    def read(self, piece: InputRange, digest: hashlib._Hash) -> Iterator[R_co | Bad]:
        """The piece's records in order; `digest` has seen its bytes at the end."""
        ...


@dataclass(frozen=True)
class MessagesSettings:
    """What units of messages of any kind share."""

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
        """Tokens that a text may have."""
        return self.sequence_length + 1

    def key(self, index: int, split: str) -> np.uint64:
        """What shuffles a unit's part of a split."""
        return hash_key(self.seed, 3, index, split == TRAIN)

    def write_shard(
        self,
        index: int,
        split: str,
        kind: str,
        groups: Iterable[RowGroup],
        row_predictions: int | None = None,
    ) -> Shard:
        """A unit's shard of a split; its rows have `row_predictions`, or else `sequence_length`."""
        with ShardWriter(
            Path(self.folder),
            f"{split}/{index:05d}.parquet",
            dtype=self.dtype,
            sequence_length=row_predictions or self.sequence_length,
            kind=kind,
        ) as writer:
            for group in groups:
                writer.write(group)
            return writer.finish()


class RecordReader(Generic[R]):
    """A unit's records as they come in; what can't be used is counted by cause and kept, with its
    place; what records hold and nobody reads is counted by its name."""

    def __init__(self, index: int, unit: Unit, reading: RecordReading[R]) -> None:
        self._index, self._unit, self._reading = index, unit, reading
        self._causes: Counter[str] = Counter()
        self._unused: Counter[str] = Counter()
        self._quarantine: list[dict[str, Any]] = []
        self._inputs: list[InputDigest] = []
        self._records = 0

    def usable(self) -> Iterator[R]:
        """The records in order, without those that the reading refuses."""
        for piece in self._unit:
            digest = hashlib.sha256()
            for record in self._reading.read(piece, digest):
                self._records += record.count if isinstance(record, Bad) else 1
                if isinstance(record, Bad):
                    self.refuse(record)
                else:
                    self._tell(record.unused)
                    yield record
            self._inputs.append(
                InputDigest(piece.name, piece.offset, piece.length, digest.hexdigest())
            )

    def refuse(self, bad: Bad) -> None:
        """Count a record as bad, also one that `usable` gave out."""
        self._causes[bad.cause] += bad.count
        if len(self._quarantine) < QUARANTINED:
            entry: dict[str, Any] = {"where": bad.where, "cause": bad.cause, "why": bad.why}
            if bad.record is not None:
                try:
                    text = canonical_json(bad.record)
                    text.encode("utf-8")
                    if len(text) <= RECORD_CHARACTERS:
                        entry["record"] = bad.record
                except (TypeError, ValueError, RecursionError):
                    pass  # what JSON can't hold is named by its place alone
            self._quarantine.append(entry)

    def _tell(self, unused: Iterable[str]) -> None:
        for name in unused:
            told = name in self._unused or len(self._unused) < UNUSED_NAMES
            self._unused[name if told else OTHER_KEYS] += 1

    def finish(
        self, folder: Path, shards: dict[str, Shard], documents: int, facts: Mapping[str, Any]
    ) -> UnitResult:
        """Write the unit's quarantine file and put its result together; `facts` get the causes, and what
        is unused."""
        (folder / UNITS_FOLDER).mkdir(exist_ok=True)
        lines = "".join(canonical_json(entry) + "\n" for entry in self._quarantine)
        write_atomic(quarantine_path(folder, self._index), lines)
        return UnitResult(
            index=self._index,
            shards=shards,
            inputs=tuple(self._inputs),
            documents=documents,
            records=self._records,
            bad=self._causes.total(),
            bad_examples=tuple(f"{e['where']}: {e['why']}" for e in self._quarantine[:EXAMPLES]),
            bytes_read=sum(piece.length for piece in self._unit),
            facts={
                "causes": dict(sorted(self._causes.items())),
                "unused": dict(sorted(self._unused.items())),
                **facts,
            },
        )


def quarantine_path(folder: Path, index: int) -> Path:
    """Where a unit's unusable records are kept."""
    return folder / UNITS_FOLDER / f"{index:05d}.quarantine.jsonl"


def record_number(unit: int, place: int) -> int:
    """A row's number, its own in the folder: the unit's above UNIT_BITS, its place in the unit below."""
    return (unit << UNIT_BITS) | place


def text_digest(split: str, ids: NDArray[np.uint32]) -> str:
    """What tells equal token ids, with the side they are on as its first letter; see `repeated`."""
    return f"{split[0]}{hashlib.blake2b(ids.tobytes(), digest_size=8).hexdigest()}"


@lru_cache(maxsize=2)
def unit_encoder(folder: str, template_sha256: str) -> ChatEncoder:
    """The encoder of a prepared folder's tokenizer; `template_sha256` tells changed ones apart.

    Raises:
        DataError: the folder's tokenizer has no chat template.
    """
    # Ray gives a unit one core; the library's own threads would fight the others for theirs.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    encoder = load_chat_encoder(Path(folder) / TOKENIZER_FOLDER)
    if encoder is None:
        raise DataError(f"{folder}/{TOKENIZER_FOLDER} holds no chat template.")
    return encoder
