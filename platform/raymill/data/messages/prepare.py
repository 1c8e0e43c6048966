"""What preparing messages has in common, whatever is made of them: the parent's tokenizer with a chat
template, a folder named by what shapes it, units in parallel, and the manifest that vouches for them.

As with text, the manifest comes last, and whatever stands without one is a start for the next try.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Protocol

from raymill.data.messages.report import QUARANTINE_NAME
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.messages.unit import RecordReading, quarantine_path
from raymill.data.store.location import NOT_SHAPING
from raymill.data.store.manifest import (
    FORMAT_VERSION,
    TOKENIZER_FOLDER,
    DataManifest,
    PreparedData,
    Split,
    is_finished,
    load_prepared,
    write_manifest,
)
from raymill.data.store.pack import dtype_for
from raymill.data.store.split import VALIDATION
from raymill.data.text.inputs_check import refuse_changed_inputs
from raymill.data.text.records import Bad
from raymill.data.text.report import announce, announce_existing, describe_plan
from raymill.data.text.sources import (
    BY_RECORD,
    EMBEDDED,
    InputRange,
    Unit,
    passed_over,
    plan_units,
)
from raymill.data.text.steps import (
    check_bad_inputs,
    lock_prepared_folder,
    remove_leftovers,
    run_units,
)
from raymill.data.text.unit import UnitResult, UnitSettings
from raymill.durable import canonical_json, sha256_text, write_atomic
from raymill.errors import DataError
from raymill.reading import read_text
from raymill.schema.data_sections import MessagesConfig
from raymill.schema.renamed import first_names

READING_VERSION = 2  # of records: raise it when the same ones are read as something else
CONVERSATIONS_VERSION = 1  # of the embedded ones: raise it when their wording changes

SMALLEST_FRACTION = 2.0**-20  # that is tried where a split is empty
SPLIT_RECORDS = 20_000  # that are read for it


class Sided(Protocol):
    """A record on its side of the held-out split."""

    @property
    def split(self) -> str:
        """The side."""
        ...


@dataclass(frozen=True)
class Preparation:
    """What one kind of messages brings to a preparation.

    `settings` names the folder and does the units' work; `plan` finds the inputs; `manifest` judges the
    units' results as a whole; `summarise` prints what came of them in how many seconds.
    """

    data: MessagesConfig
    tokenizer: ChatTokenizer
    settings: UnitSettings
    plan: Callable[[], list[Unit]]
    manifest: Callable[[Sequence[UnitResult]], DataManifest]
    summarise: Callable[[PreparedData, Sequence[UnitResult], float], None]

    @property
    def folder(self) -> Path:
        """Where the prepared data lies, or will."""
        return Path(self.settings.folder)

    def run(self, tasks: int | None = None) -> PreparedData:
        """Prepare, or find it prepared already, on a Ray that is initialised.

        Raises:
            DataError: the input is missing or too bad, or the folder holds something else than it
            should.
        """
        units, folder = self.plan(), self.folder
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        with lock_prepared_folder(folder):
            if self._finished:
                return self._existing(units)
            announce(folder, units, passed_over(self.data))
            self.tokenizer.save(folder / TOKENIZER_FOLDER)
            results = run_units(units, self.settings, tasks)
            manifest = self.manifest(results)
            remove_leftovers(folder, manifest, len(units))
            write_manifest(folder, manifest)
        prepared = load_prepared(folder)
        self.summarise(prepared, results, time.monotonic() - started)
        return prepared

    def describe(self) -> str:
        """What `run` would read and write, for a dry run."""
        state = "finished" if self._finished else "not finished"
        return f"{describe_plan(self.plan(), passed_over(self.data))} → {self.folder} ({state})"

    def find(self) -> PreparedData | None:
        """The finished folder, verified, if there is one and its inputs are still what they were."""
        return self._existing(self.plan()) if self._finished else None

    @property
    def _finished(self) -> bool:
        return is_finished(self.folder)

    def _existing(self, units: Sequence[Unit]) -> PreparedData:
        prepared = load_prepared(self.folder)
        refuse_changed_inputs(prepared, units, self.settings)
        announce_existing(prepared)
        return prepared


def shaping_messages(
    data: MessagesConfig, tokenizer: ChatTokenizer, seed: int, *, embedded: bool = False
) -> dict[str, Any]:
    """What prepared bytes depend on, as the manifest carries it; `embedded`: the data is made, not read."""
    versions: dict[str, object] = {}
    if embedded:  # another Python has other functions
        versions = {"python": platform.python_version(), "conversations": CONVERSATIONS_VERSION}
    left_out = (*NOT_SHAPING, "template", "special_tokens")
    tree = {key: value for key, value in asdict(data).items() if key not in left_out}
    return {
        "reading": READING_VERSION,
        # The folder is named by this tree, so its keys keep the names of the folders that exist.
        "data": {**first_names(tree, "data"), **versions},
        "tokenizer": tokenizer.identity.fingerprint,
        "template": tokenizer.template_sha256,
        "seed": seed,
    }


def messages_folder(
    data: MessagesConfig, shaping: Mapping[str, Any], storage_root: str | Path
) -> Path:
    """`<storage root>/data/<data.name>-<digest8>`, named by what shapes it, as for text."""
    digest = sha256_text(canonical_json({"format_version": FORMAT_VERSION, **shaping}))[:8]
    return (Path(storage_root) / "data" / f"{data.name}-{digest}").absolute()


def plan_message_units(data: MessagesConfig, what: str) -> list[Unit]:
    """Find the inputs and cut them into units; `what` they are read as, in the plural.

    Raises:
        DataError: a path matches nothing, or is plain text.
    """
    units = plan_units(data, seed=0)
    for unit in units:
        for piece in unit:
            if piece.format in ("txt", "md"):
                raise DataError(
                    f"{piece.path} is plain text; {what} are read from .jsonl, .jsonl.gz, "
                    ".jsonl.zst, .parquet and folders of datasets.save_to_disk."
                )
    return units


def embedded_unit(name: str = EMBEDDED) -> list[Unit]:
    """The one unit of embedded conversations."""
    return [(InputRange(name, "", EMBEDDED, BY_RECORD, 0, 1, 1, 0),)]


def repeated(results: Sequence[UnitResult]) -> dict[str, int]:
    """How many texts are there more than once, by the units' `text_digest`s, and how many on both sides:
    those would make held-out figures flatter."""
    digests = Counter(digest for result in results for digest in result.facts["digests"])
    return {
        "duplicates": digests.total() - len(digests),
        "leaked": sum(f"v{digest[1:]}" in digests for digest in digests if digest[0] == "t"),
    }


class SplitReading(RecordReading[Sided], Protocol):
    """The way to read records, and the share of their groups that is held out; a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class SplitSettings(UnitSettings, Protocol):
    """Settings of units whose records a reading splits."""

    @property
    def reading(self) -> SplitReading:
        """The way to read their records."""
        ...


def judged_manifest(
    data: MessagesConfig,
    tokenizer: ChatTokenizer,
    settings: SplitSettings,
    results: Sequence[UnitResult],
    shaping: Mapping[str, Any],
    *,
    kind: str,
    what: str,
) -> DataManifest:
    """The manifest without its kind's own facts, once the results are judged good enough.

    `what` the data is made of, in the singular.

    Raises:
        DataError: too many records are bad, or a split has nothing.
    """
    folder = Path(settings.folder)
    quarantine = folder / QUARANTINE_NAME
    kept = [quarantine_path(folder, result.index) for result in results]
    write_atomic(quarantine, "".join(map(read_text, kept)))
    bad = check_bad_inputs(data, results, quarantine)
    documents = sum(result.documents for result in results)
    splits = {
        name: Split.from_shards(tuple(r.shards[name] for r in results if name in r.shards))
        for name in ("train", "validation")
    }
    for name, missing in (("train", "to train on"), ("validation", "held out")):
        if not splits[name].rows:
            why = _why_missing(data, settings.reading, name, documents, what)
            raise DataError(f"No {what} is {missing}: {why}.")
    return DataManifest(
        format_version=FORMAT_VERSION,
        name=data.name,
        sequence_length=data.row_predictions,
        row_group_rows=data.row_group_rows,
        dtype=dtype_for(tokenizer.identity.vocab_size),
        tokenizer=tokenizer.identity,
        splits=splits,
        inputs=tuple(entry for result in results for entry in result.inputs),
        documents=documents,
        bad_inputs=bad,
        contamination=None,
        config=dict(shaping),
        kind=kind,
    )


def _why_missing(
    data: MessagesConfig, reading: SplitReading, split: str, documents: int, what: str
) -> str:
    """Return why a split has nothing, and what helps."""
    if not documents:
        return "of 0 usable ones nothing falls on a side; the bad records are kept in quarantine, with why"
    if data.validation.path is not None:
        key = "data.validation.path" if split == VALIDATION else "data.path"
        return f"of {documents} usable ones all are of the other side; give {key} files that can be used"
    column = data.validation.group_column
    key = f"data.validation.group_column={column}"
    one, several = f"value of {key}", f"values of {key}"
    if column is None:
        one, several = "first question", "first questions"
    fraction = _dividing_fraction(data, reading, what)
    if fraction is None:
        return (
            f"of {documents} usable ones all have one {one}, which is never on both sides; give some that have "
            "another, or data.validation.path with held-out ones"
        )
    return (
        f"of {documents} usable ones all fell on the other side, since they have few different {several}; set "
        f"data.validation.fraction={fraction:.10g}, or give data.validation.path"
    )


def _dividing_fraction(data: MessagesConfig, reading: SplitReading, what: str) -> float | None:
    """A share to hold out that leaves something on both sides, found by halving; None if there is none."""
    low, high = 0.0, 1.0
    units = plan_message_units(data, f"{what}s")
    while high - low > SMALLEST_FRACTION:
        fraction = (low + high) / 2
        tried = replace(reading, fraction=fraction)
        records = (
            record
            for unit in units
            for piece in unit
            for record in tried.read(piece, hashlib.sha256())
            if not isinstance(record, Bad)
        )
        sides = {record.split for record in islice(records, SPLIT_RECORDS)}
        if len(sides) == 2:
            return fraction
        low, high = (low, fraction) if sides == {VALIDATION} else (fraction, high)
    return None
