"""Runs: files of encoded documents, sorted by key, that shards are packed from.

A run is an Arrow file of one batch, which is mapped into memory. An entry is a document or, of a long one, a
piece: the pieces of a document have its key and follow one another, also over the runs of a unit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raymill.data.store.hashing import Words, mix
from raymill.data.store.lineage import Origin
from raymill.data.text.encoder import Encoded
from raymill.durable import atomic_replacement, sha256_file

RUNS_FOLDER = "runs"
# Tokens of a run at most, with 8 to 12 bytes each in memory; one large file gives several runs.
RUN_TOKENS = 1 << 24
KEYS = 2**64


@dataclass(frozen=True)
class Run:
    """File of encoded documents, sorted by key. `bytes`: UTF-8 bytes of their text.

    `selection` is the file that says which of its documents are packed, by their number; "": all of them.
    """

    path: str
    sha256: str
    documents: int
    tokens: int
    bytes: int
    selection: str = ""
    selection_sha256: str = ""


@dataclass(frozen=True)
class DocumentNote:
    """Facts about a document: its number in a file of documents (-1: there is none), its source and
    language ("" while unknown), and the words and bytes of its text."""

    row: int = -1
    source: str = ""
    language: str = ""
    words: int = 0


@dataclass(frozen=True)
class RunEntry:
    """Document or piece of one, as it was added."""

    key: int
    note: DocumentNote
    ids: NDArray[np.unsignedinteger]
    token_bytes: NDArray[np.unsignedinteger]
    ends: bool
    origin: Origin


class RunWriter:
    """Writer of a unit's runs below a folder; holds the documents of one in memory."""

    def __init__(self, folder: Path, name: str, seed: int, dtype: str) -> None:
        self._folder, self._name, self._seed = folder, name, seed
        self._dtype = np.dtype(dtype)
        self._runs: list[Run] = []
        self._range, self._range_key, self._number = "", np.uint64(0), 0
        self._entries: list[RunEntry] = []
        self._pending = 0

    def add(
        self, input_range: str, piece: Encoded, origin: Origin, note: DocumentNote = DocumentNote()
    ) -> None:
        """Add the next document or piece of an input range, which the name identifies."""
        if input_range != self._range:
            text = f"{self._seed}/{input_range}"
            digest = hashlib.sha256(text.encode()).digest()
            self._range, self._number = input_range, 0
            self._range_key = np.frombuffer(digest[:8], dtype="<u8")[0]
        # A document that has a number keeps its key, whatever is left out before it.
        number = self._number if note.row < 0 else note.row
        key = int(mix(self._range_key ^ mix(np.uint64(number))))
        self._number += piece.ends
        ids = piece.ids.astype(self._dtype)
        # Nearly all tokens are shorter than 256 bytes.
        sizes = piece.token_bytes.astype(np.min_scalar_type(int(piece.token_bytes.max(initial=0))))
        self._entries.append(RunEntry(key, note, ids, sizes, piece.ends, origin))
        self._pending += len(ids)
        if self._pending >= RUN_TOKENS:
            self._write()

    def finish(self) -> tuple[Run, ...]:
        """Write the last run and return all of them."""
        if self._entries:
            self._write()
        return tuple(self._runs)

    def _write(self) -> None:
        entries = sorted(self._entries, key=lambda entry: entry.key)
        path = f"{RUNS_FOLDER}/{self._name}-{len(self._runs)}.arrow"
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        batch = _batch(entries, self._dtype)
        with atomic_replacement(target) as temporary:
            with pa.ipc.new_file(temporary, batch.schema) as file:
                file.write_batch(batch)
            sha256 = sha256_file(temporary)
        documents = sum(entry.ends for entry in entries)
        text_bytes = sum(int(entry.token_bytes.sum(dtype=np.int64)) for entry in entries)
        self._runs.append(Run(path, sha256, documents, self._pending, text_bytes))
        self._entries, self._pending = [], 0


def _batch(entries: list[RunEntry], dtype: np.dtype[np.unsignedinteger]) -> pa.RecordBatch:
    ends = np.cumsum([0, *(len(entry.ids) for entry in entries)])
    ids = np.concatenate([entry.ids for entry in entries])
    # Of several widths, the result has the largest.
    sizes = np.concatenate([entry.token_bytes for entry in entries])
    origins = [entry.origin for entry in entries]
    return pa.record_batch(
        {
            "key": pa.array([entry.key for entry in entries], pa.uint64()),
            "row": pa.array([entry.note.row for entry in entries], pa.int64()),
            "source": pa.array([entry.note.source for entry in entries]).dictionary_encode(),
            "language": pa.array([entry.note.language for entry in entries]).dictionary_encode(),
            "words": pa.array([entry.note.words for entry in entries], pa.int64()),
            "text_bytes": pa.array(
                [int(entry.token_bytes.sum(dtype=np.int64)) for entry in entries], pa.int64()
            ),
            "ends": pa.array([entry.ends for entry in entries], pa.bool_()),
            "file": pa.array([origin.file for origin in origins]).dictionary_encode(),
            "offset": pa.array([origin.offset for origin in origins], pa.int64()),
            "length": pa.array([origin.length for origin in origins], pa.int64()),
            "sha256": pa.array([origin.sha256 for origin in origins], pa.binary()),
            "ids": pa.LargeListArray.from_arrays(ends, pa.array(ids, pa.from_numpy_dtype(dtype))),
            "bytes": pa.LargeListArray.from_arrays(ends, pa.array(sizes)),
        }
    )


class OpenRun:
    """Run that is mapped into memory."""

    def __init__(self, folder: Path, run: Run) -> None:
        with pa.memory_map(str(folder / run.path)) as source:
            self._batch = pa.ipc.open_file(source).get_batch(0)
        self.keys: Words = self._batch.column("key").to_numpy()
        self.rows: NDArray[np.int64] = self._batch.column("row").to_numpy()
        self.text_bytes: NDArray[np.int64] = self._batch.column("text_bytes").to_numpy()
        self.lengths: NDArray[np.int64] = np.diff(self._batch.column("ids").offsets.to_numpy())
        self.ends: NDArray[np.bool_] = self._batch.column("ends").to_numpy(zero_copy_only=False)

    def within(self, low: int, high: int) -> tuple[int, int]:
        """Return the first entry with a key in [low, high), and the one after the last."""
        first = int(np.searchsorted(self.keys, np.uint64(low)))
        last = len(self.keys)
        if high < KEYS:
            last = int(np.searchsorted(self.keys, np.uint64(high)))
        return first, last

    def entries(self, indices: NDArray[np.int64]) -> Iterator[RunEntry]:
        """Yield entries; their arrays are those of the file."""
        columns = {name: self._batch.column(name) for name in self._batch.schema.names}
        for index in indices.tolist():
            values = {name: columns[name][index].as_py() for name in _ORIGIN}
            yield RunEntry(
                key=int(self.keys[index]),
                note=DocumentNote(int(self.rows[index])),
                ids=columns["ids"][index].values.to_numpy(),
                token_bytes=columns["bytes"][index].values.to_numpy(),
                ends=columns["ends"][index].as_py(),
                origin=Origin(**values),
            )

    def notes(self, indices: NDArray[np.int64]) -> Iterator[tuple[str, str, list[int]]]:
        """Yield source, language, and (documents, bytes, words, tokens) of entries; a document counts where
        it ends."""
        part = self._batch.select(["source", "language"]).take(pa.array(indices))
        ends = self.ends[indices].astype(np.int64)
        words = self._batch.column("words").to_numpy()[indices] * ends
        columns = [ends, self.text_bytes[indices], words, self.lengths[indices]]
        counts = np.stack(columns, axis=1).tolist()
        for names, values in zip(part.to_pylist(), counts, strict=True):
            yield names["source"], names["language"], values


_ORIGIN = ("file", "offset", "length", "sha256")
