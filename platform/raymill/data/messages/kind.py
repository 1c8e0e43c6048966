"""A kind of data made of messages: all that a preparation must know of it, behind one interface.

Chat, preference and prompts are kinds; `raymill.data.kinds` lists them. A new kind is one module with a
`MessageKind`, the `MessageParser` of its records and the `MessageUnit` that encodes them, and a configuration.
CONTRIBUTING.md lists what `kind=` on the command line needs besides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Console

from raymill.data.messages.records import MessageParser, MessageValue
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.sources.counters import Counters
from raymill.data.sources.inputs import BY_RECORD, EMBEDDED, InputRange, Unit
from raymill.data.sources.planning import plan_units
from raymill.data.sources.registry import format_named
from raymill.data.store.facts import ChatFacts, PreferenceFacts, PromptsFacts
from raymill.data.store.manifest import DataManifest, PreparedData
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.text.unit import UnitResult, UnitSettings
from raymill.errors import DataError
from raymill.schema.data_sections import MessagesConfig

C = TypeVar("C", bound=MessagesConfig)
V = TypeVar("V", bound=MessageValue)
S = TypeVar("S", bound=Counters)


class MessageKind(ABC, Generic[C, V]):
    """One kind of data made of messages, prepared as its configuration C says."""

    name: str  # as in `prepare kind=`, in a manifest and in `rows.TOKEN_COLUMNS`
    row_noun: str  # for what a row is made of, in the singular
    plural: str  # for what records are read as
    description: str  # for the data as a whole

    @abstractmethod
    def parser(self, data: C, fraction: float, seed: int) -> MessageParser[V]:
        """Return the parser of the records, which holds out a `fraction` of their groups."""

    @abstractmethod
    def settings(self, data: C, tokenizer: ChatTokenizer, folder: Path, seed: int) -> UnitSettings:
        """Return what every unit needs to parse, encode and write its records."""

    @abstractmethod
    def facts(
        self,
        data: C,
        tokenizer: ChatTokenizer,
        folder: Path,
        results: Sequence[UnitResult],
        manifest: DataManifest,
    ) -> Mapping[str, ChatFacts | PreferenceFacts | PromptsFacts]:
        """Return the kind's own entry of the manifest, by its name; `manifest` has all the others.

        Files that the entry names are written here.
        """

    @abstractmethod
    def figures(self, prepared: PreparedData, records: int) -> list[tuple[str, str]]:
        """Return (topic, text) of a finished preparation that read so many records."""

    @abstractmethod
    def preview(self, prepared: PreparedData, count: int, console: Console | None = None) -> None:
        """Print the first `count` training rows from the shards themselves, as the model sees them."""

    def leaked(self, prepared: PreparedData) -> str | None:
        """Name what is in both splits, which makes held-out figures too good, or return None."""
        return None

    def embedded_source(self, data: C) -> str | None:
        """Return the embedded conversations that the data is made of, if it isn't read from files."""
        return None

    def plan(self, data: C) -> Sequence[Unit]:
        """Find the inputs and cut them into units.

        Raises:
            DataError: a path matches nothing, or is plain text.
        """
        source = self.embedded_source(data)
        if source is not None:
            return [(InputRange(source, "", EMBEDDED, BY_RECORD, 0, 1, 1, 0),)]
        units = plan_units(data, seed=0)
        for unit in units:
            for span in unit:
                if format_named(span.format).text_only:
                    raise DataError(
                        f"{span.path} is plain text; {self.plural} are read from .jsonl, .jsonl.gz, "
                        ".jsonl.zst, .parquet and folders of datasets.save_to_disk."
                    )
        return units


def total_statistics(counts: type[S], results: Sequence[UnitResult]) -> dict[str, S]:
    """Add up each split's statistics over all units."""
    return {
        split: counts.total(result.facts["statistics"][split] for result in results)
        for split in (TRAIN, VALIDATION)
    }


def count_repeated(results: Sequence[UnitResult]) -> dict[str, int]:
    """Count texts that occur more than once, and those in both splits, by the units' `text_digest`s.

    A text in both splits makes held-out figures too good.
    """
    digests = Counter(digest for result in results for digest in result.facts["digests"])
    return {
        "duplicates": digests.total() - len(digests),
        "leaked": sum(f"v{digest[1:]}" in digests for digest in digests if digest[0] == "t"),
    }
