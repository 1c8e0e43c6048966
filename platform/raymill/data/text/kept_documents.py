"""Encoded documents of a corpus: kept, so that another selection of them is packed without tokenizing.

`tokens/<fingerprint>/` in the corpus folder holds the runs of each file of documents, with the number of each
document in it. A selection that leaves more out, as after a takedown, takes what is there; of one that has
others, only these are encoded, into another run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raymill.data.sources.inputs import InputRange
from raymill.data.sources.selected_documents import selection_path
from raymill.data.store.manifest import TokenizerIdentity
from raymill.data.text.fertility import Fertility
from raymill.data.text.runs import OpenRun, Run, RunEntry, RunWriter
from raymill.durable import canonical_json, sha256_file, write_atomic
from raymill.reading import MISSING, read_bytes, read_text

TOKENS_FOLDER = "tokens"
# Hex digits of the tokenizer's fingerprint in the folder's name.
FINGERPRINT_DIGITS = 16

Selection = NDArray[np.uint8]


class KeptDocuments:
    """Runs of one file of documents, by one tokenizer and seed."""

    def __init__(self, span: InputRange, tokenizer: TokenizerIdentity, seed: int) -> None:
        self._documents = Path(span.path)
        corpus = self._documents.parent.parent
        self._folder = corpus / TOKENS_FOLDER / tokenizer.fingerprint[:FINGERPRINT_DIGITS]
        self._name = f"{self._documents.stem}-{seed}"
        self._selection = corpus / selection_path(self._documents.stem)
        self.selection: Selection = np.frombuffer(read_bytes(self._selection), dtype=np.uint8)
        self._sha256 = sha256_file(self._documents)
        self.runs = self._found()

    def missing(self) -> NDArray[np.bool_]:
        """Mark the selected documents that aren't encoded yet."""
        wanted = self.selection > 0
        for run in self.runs:
            wanted[OpenRun(self._folder, run).rows] = False
        return wanted

    def writer(self, seed: int, dtype: str) -> RunWriter:
        """Return a writer of documents that are missing."""
        return RunWriter(self._folder, f"{self._name}-{len(self.runs)}", seed, dtype)

    def add(self, runs: Sequence[Run]) -> None:
        """Keep the runs of documents that were missing."""
        self.runs = (*self.runs, *runs)
        tree = {"documents": self._sha256, "runs": [asdict(run) for run in self.runs]}
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._sidecar, canonical_json(tree) + "\n")

    def selected(self, split: int) -> tuple[Run, ...]:
        """Return the runs as they are packed, with what is selected of them for a split."""
        sha256 = sha256_file(self._selection)
        found = []
        for run in self.runs:
            opened = OpenRun(self._folder, run)
            chosen = self.selection[opened.rows] == split
            found.append(
                replace(
                    run,
                    path=str(self._folder / run.path),
                    documents=int((chosen & opened.ends).sum()),
                    tokens=int(opened.lengths[chosen].sum()),
                    bytes=int(opened.text_bytes[chosen].sum()),
                    selection=str(self._selection),
                    selection_sha256=sha256,
                )
            )
        return tuple(found)

    def entries(self, split: int) -> Iterator[RunEntry]:
        """Yield the documents of a split in the order of the file."""
        opened = [OpenRun(self._folder, run) for run in self.runs]
        places = [np.flatnonzero(self.selection[run.rows] == split) for run in opened]
        number = np.repeat(np.arange(len(opened)), [len(place) for place in places])
        place = np.concatenate([*places, np.zeros(0, dtype=np.int64)])
        rows = np.concatenate(
            [*(run.rows[p] for run, p in zip(opened, places, strict=True)), place[:0]]
        )
        # The pieces of a document follow one another, in its runs too.
        for index in np.argsort(rows, kind="stable").tolist():
            yield from opened[number[index]].entries(place[index : index + 1])

    def fertility(self) -> Fertility:
        """Return the sums over all selected documents."""
        total = Fertility()
        for run in self.runs:
            opened = OpenRun(self._folder, run)
            total.add_columns(opened.notes(np.flatnonzero(self.selection[opened.rows] > 0)))
        return total

    @property
    def _sidecar(self) -> Path:
        return self._folder / f"{self._name}.json"

    def _found(self) -> tuple[Run, ...]:
        """Return the runs of earlier preparations, if they are whole."""
        try:
            tree = json.loads(read_text(self._sidecar))
            if tree["documents"] != self._sha256:
                return ()
            runs = tuple(Run(**run) for run in tree["runs"])
            return runs if self._are_whole(runs) else ()
        except (*MISSING, ValueError, KeyError, TypeError):
            return ()

    def _are_whole(self, runs: Iterable[Run]) -> bool:
        return all(sha256_file(self._folder / run.path) == run.sha256 for run in runs)
