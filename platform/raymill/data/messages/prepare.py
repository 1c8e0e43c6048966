"""Prepare messages of any kind: the parent's tokenizer with a chat template, a folder named by what shapes
it, units in parallel, and a manifest.

The manifest is written last: a folder without one is an unfinished preparation, which the next run resumes.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

from raymill.data.messages.kind import MessageKind
from raymill.data.messages.records import MessageValue, quarantine_path
from raymill.data.messages.report import QUARANTINE_NAME, say_figures
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.sources.files import passed_over
from raymill.data.sources.format import Bad
from raymill.data.sources.inputs import Unit
from raymill.data.store.location import NOT_SHAPING
from raymill.data.store.manifest import (
    FORMAT_VERSION,
    NAMING_VERSION,
    TOKENIZER_FOLDER,
    DataManifest,
    PreparedData,
    Split,
    check_shard_sizes,
    is_finished,
    load_prepared,
    write_manifest,
)
from raymill.data.store.pack import dtype_for
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.text.inputs_check import refuse_changed_inputs
from raymill.data.text.report import announce, announce_existing, describe_plan
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

READING_VERSION = 2  # raise it when the same records are parsed differently
CONVERSATIONS_VERSION = 1  # raise it when the wording of the embedded conversations changes

SMALLEST_FRACTION = 2.0**-20  # tried where a split is empty
SPLIT_RECORDS = 20_000  # read for each fraction that is tried

C = TypeVar("C", bound=MessagesConfig)
V = TypeVar("V", bound=MessageValue)


class Preparation(Generic[C, V]):
    """Prepared data of one kind: where it lies, whether it is finished, and how it is made."""

    def __init__(
        self,
        kind: MessageKind[C, V],
        data: C,
        tokenizer: ChatTokenizer,
        seed: int,
        storage_root: str | Path,
    ) -> None:
        self._kind, self._data, self._tokenizer, self._seed = kind, data, tokenizer, seed
        # The folder is named by all that shapes the bytes in it, so that training finds it by the same rule.
        digest = sha256_text(canonical_json({"format_version": NAMING_VERSION, **self.shaping}))
        self.folder = (Path(storage_root) / "data" / f"{data.name}-{digest[:8]}").absolute()

    @cached_property
    def shaping(self) -> dict[str, object]:
        """The configuration and versions that prepared bytes depend on, as the manifest carries them."""
        versions: dict[str, object] = {}
        if self._kind.embedded_source(self._data) is not None:
            # The embedded conversations are about the functions of the running Python.
            versions = {
                "python": platform.python_version(),
                "conversations": CONVERSATIONS_VERSION,
            }
        # The digests of tokenizer and template cover these two keys.
        left_out = (*NOT_SHAPING, "template", "special_tokens")
        tree = {key: value for key, value in asdict(self._data).items() if key not in left_out}
        return {
            "reading": READING_VERSION,
            # The folder is named by this tree, so its keys keep the names of the folders that exist.
            "data": {**first_names(tree, "data"), **versions},
            "tokenizer": self._tokenizer.identity.fingerprint,
            "template": self._tokenizer.template_sha256,
            "seed": self._seed,
        }

    @cached_property
    def settings(self) -> UnitSettings:
        """The settings of every unit."""
        return self._kind.settings(self._data, self._tokenizer, self.folder, self._seed)

    @property
    def finished(self) -> bool:
        """True if the folder has its manifest."""
        return is_finished(self.folder)

    def plan(self) -> Sequence[Unit]:
        """Find the inputs and cut them into units.

        Raises:
            DataError: a path matches nothing, or is plain text.
        """
        return self._kind.plan(self._data)

    def run(self, tasks: int | None = None) -> PreparedData:
        """Prepare the data on a Ray that is initialized, or return it where it is finished already.

        Raises:
            DataError: the input is missing or too bad, or the folder holds something unexpected.
        """
        units, folder = self.plan(), self.folder
        folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        # Another process may have finished the folder while this one waited for the lock.
        with lock_prepared_folder(folder):
            if self.finished:
                return self._existing(units)
            announce(folder, units, passed_over(self._data))
            # The tokenizer is written first, since every unit loads it from the folder.
            self._tokenizer.save(folder / TOKENIZER_FOLDER)
            results = run_units(units, self.settings, tasks)
            manifest = self.manifest(results)
            # An interrupted try with other settings may have left shards that the manifest doesn't
            # name.
            remove_leftovers(folder, manifest, len(units))
            write_manifest(folder, manifest)
        prepared = load_prepared(folder)
        figures = self._kind.figures(prepared, sum(result.records for result in results))
        leaked = self._kind.leaked(prepared)
        warnings = [f"{leaked} are in both splits"] if leaked else []
        say_figures(prepared, results, time.monotonic() - started, figures, warnings)
        return prepared

    def describe(self) -> str:
        """Return what `run` would read and write, for a dry run."""
        state = "finished" if self.finished else "not finished"
        return f"{describe_plan(self.plan(), passed_over(self._data))} → {self.folder} ({state})"

    def find(self) -> PreparedData | None:
        """Return the finished folder, verified, if there is one and its inputs haven't changed."""
        return self._existing(self.plan()) if self.finished else None

    def manifest(self, results: Sequence[UnitResult]) -> DataManifest:
        """Check the units' results as a whole, and write the files next to the shards.

        Raises:
            DataError: too many records are bad, or a split has nothing.
        """
        data, folder = self._data, self.folder
        quarantine = folder / QUARANTINE_NAME
        quarantined = (quarantine_path(folder, result.index) for result in results)
        write_atomic(quarantine, "".join(map(read_text, quarantined)))
        bad = check_bad_inputs(data, results, quarantine)
        documents = sum(result.documents for result in results)
        splits = {
            split: Split.from_shards(r.shards[split] for r in results if split in r.shards)
            for split in (TRAIN, VALIDATION)
        }
        for split, missing in ((TRAIN, "to train on"), (VALIDATION, "held out")):
            if not splits[split].rows:
                why = self._why_missing(split, documents)
                raise DataError(f"No {self._kind.row_noun} is {missing}: {why}.")
        manifest = DataManifest(
            format_version=FORMAT_VERSION,
            name=data.name,
            sequence_length=data.row_predictions,
            row_group_rows=data.row_group_rows,
            dtype=dtype_for(self._tokenizer.identity.vocab_size),
            tokenizer=self._tokenizer.identity,
            splits=splits,
            inputs=tuple(entry for result in results for entry in result.inputs),
            documents=documents,
            bad_inputs=bad,
            contamination=None,
            config=dict(self.shaping),
            kind=self._kind.name,
        )
        facts = self._kind.facts(data, self._tokenizer, folder, results, manifest)
        return replace(manifest, **facts)  # type: ignore[arg-type]  # names of the manifest's fields

    def _existing(self, units: Sequence[Unit]) -> PreparedData:
        prepared = load_prepared(self.folder)
        check_shard_sizes(prepared)
        refuse_changed_inputs(prepared, units, self.settings)
        announce_existing(prepared)
        return prepared

    def _why_missing(self, split: str, documents: int) -> str:
        """Return why a split has nothing, and what to do about it."""
        validation = self._data.validation
        if not documents:
            return "there are no usable records; the bad ones are kept in quarantine, each with the reason"
        if validation.path is not None:
            key = "data.validation.path" if split == VALIDATION else "data.path"
            return f"all {documents} usable ones are of the other split; give {key} files that can be used"
        column = validation.group_column
        one, several = "first question", "first questions"
        if column is not None:
            key = f"data.validation.group_column={column}"
            one, several = f"value of {key}", f"values of {key}"
        fraction = self._dividing_fraction()
        if fraction is None:
            return (
                f"all {documents} usable ones share one {one}, which is never in both splits; give some that "
                "have another, or give held-out ones as data.validation.path"
            )
        return (
            f"all {documents} usable ones are in the other split, since they have few different {several}; "
            f"set data.validation.fraction={fraction:.10g}, or give data.validation.path"
        )

    def _dividing_fraction(self) -> float | None:
        """Find by bisection a fraction to hold out that leaves something in both splits, or None."""
        low, high = 0.0, 1.0
        units = self.plan()
        while high - low > SMALLEST_FRACTION:
            fraction = (low + high) / 2
            parser = self._kind.parser(self._data, fraction, self._seed)
            records = (
                record
                for unit in units
                for piece in unit
                for record in parser.read(piece, hashlib.sha256())
                if not isinstance(record, Bad)
            )
            splits = {record.split for record in islice(records, SPLIT_RECORDS)}
            if len(splits) == 2:
                return fraction
            # If everything is held out, the fraction is too large; if nothing is, it is too small.
            low, high = (low, fraction) if splits == {VALIDATION} else (fraction, high)
        return None
