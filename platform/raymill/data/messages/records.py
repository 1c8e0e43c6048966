"""Records of messages: parsed, assigned to a split, and counted, whatever kind of data they are.

A kind brings a `MessageParser`, which turns a record into a checked value (a conversation, a comparison, a
prompt). Everything else about reading is the same for all kinds and is done here.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import pyarrow as pa

from raymill.data.messages.keys import COLUMN, MEDIA, unread_names
from raymill.data.messages.problems import Problem
from raymill.data.sources.format import Bad, Place, Record, record_split
from raymill.data.sources.inputs import BY_RECORD, EMBEDDED, InputRange, Unit
from raymill.data.sources.records import read_records
from raymill.data.sources.registry import record_location
from raymill.data.sources.table_values import holds_json
from raymill.data.store.manifest import InputDigest, Shard
from raymill.data.store.split import TRAIN, VALIDATION, is_held_out
from raymill.data.text.unit import EXAMPLES, UNITS_FOLDER, UnitResult
from raymill.durable import canonical_json, write_atomic

if TYPE_CHECKING:
    from raymill.data.demo.stdlib_conversations import ConversationEntry

LISTED_WAYS = 3  # sets of columns of a format that an error message lists
QUARANTINED = 10_000  # records kept per unit; the others are only counted
QUARANTINED_CHARACTERS = (
    100_000  # of a record's JSON; a longer record is named by its location alone
)
UNUSED_NAMES = 100  # keys counted by name; all others are counted together
OTHER_KEYS = "other keys"

Ways = Sequence[Sequence[str]]  # sets of columns, of which a format needs one whole


class MessageValue(Protocol):
    """The value of a usable record: a conversation, a comparison or a prompt."""

    @property
    def first_user(self) -> str:
        """The first question: records that share it stay in one split."""
        ...

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the keys that the parser didn't read."""
        ...


V = TypeVar("V", bound=MessageValue)


@dataclass(frozen=True)
class ParsedRecord(Generic[V]):
    """A usable record: its split, its value, what to quarantine if it can't be encoded, and its location.

    `unused` names the keys and columns that nothing reads.
    """

    split: str
    value: V
    record: Mapping[str, object]
    span: InputRange
    number: int | None
    unused: tuple[str, ...] = ()

    @property
    def where(self) -> str:
        """Return file:line or row, for a message; computed only on demand, since it reads the file."""
        if self.span.format == EMBEDDED:
            return f"{self.span.name}, conversation {self.number}"
        return record_location(self.span, self.number)


@dataclass(frozen=True, kw_only=True)
class MessageParser(ABC, Generic[V]):
    """Parse a kind's records; the fields are the part of the configuration that decides how.

    The fields enter the digest by which an unfinished preparation recognizes its finished units: renaming one
    makes every interrupted preparation start over.
    """

    group_column: str | None  # None: the first question decides the split
    fraction: float
    seed: int

    @abstractmethod
    def parse(self, record: Mapping[str, object]) -> V | Problem:
        """Return the record's value, or why it can't be used."""

    @abstractmethod
    def embedded(self, entry: ConversationEntry) -> tuple[V | Problem, Mapping[str, object]]:
        """Parse an embedded conversation; return its value and the record that it stands for."""

    @property
    @abstractmethod
    def formats(self) -> Mapping[str, Ways]:
        """The sets of columns of each accepted format, of which a table needs one whole."""

    @property
    @abstractmethod
    def other_columns(self) -> Sequence[str]:
        """Columns that are read where a table has them."""

    @property
    @abstractmethod
    def noun(self) -> str:
        """A value with its article, for messages: "a conversation"."""

    def kept_record(self, value: V, record: dict[str, object]) -> Mapping[str, object]:
        """Return what to quarantine where the value can't be encoded: the record itself by default."""
        return record

    def parse_text(self, text: str, values: Record, span: InputRange, place: Place) -> Bad:
        """Refuse plain text, which has no turns."""
        return Bad(span.name, f"plain text isn't {self.noun}", cause="format")

    def parse_record(self, record: Record, span: InputRange, place: Place) -> ParsedRecord[V] | Bad:
        """Parse a record and assign it to a split."""
        plain = dict(record)
        if span.format in ("parquet", "arrow"):
            # A table has every row's columns in each row, so a null there means "not given".
            plain = {name: item for name, item in record.items() if item is not None}
        value = self.parse(plain)
        if isinstance(value, Problem):
            return Bad("", value.why, cause=value.cause, record=plain)
        split = self._split(span, plain, value.first_user)
        if isinstance(split, Bad):
            return split
        # The group column is read after all: it decides the split.
        deciding = f"{COLUMN} {self.group_column!r}"
        unused = tuple(name for name in value.unused if name != deciding)
        return ParsedRecord(
            split, value, self.kept_record(value, plain), span, place.number, unused
        )

    def columns(self, stored: pa.Schema, span: InputRange) -> list[str] | Bad:
        """Choose a table's columns: those of a known format, and all others that JSON can hold.

        A table that has no format's columns is Bad, of the cause `format`.
        """
        # A table without the columns of any format is refused once, not row by row.
        formats = self.formats
        if not any(set(way) <= set(stored.names) for ways in formats.values() for way in ways):
            needed = "; ".join(
                f"{name}: {' or '.join(', '.join(way) for way in ways[:LISTED_WAYS])}"
                for name, ways in formats.items()
            )
            known = ", ".join(stored.names[:8])
            return Bad("", f"no format's columns (expected {needed}; has {known})", cause="format")
        wanted = [column for ways in formats.values() for way in ways for column in way]
        others = (*self.other_columns, self.group_column or "")
        rest = [name for name in stored.names if holds_json(stored.field(name).type)]
        # Media are read, though JSON can't hold them, so that records with media are refused.
        every = dict.fromkeys((*wanted, *others, *rest, *MEDIA))
        return [name for name in every if name in stored.names]

    def read(self, span: InputRange, digest: hashlib._Hash) -> Iterator[ParsedRecord[V] | Bad]:
        """Yield the records of an input in order; `digest` has seen all its bytes at the end."""
        if span.format != EMBEDDED:
            yield from read_records(span, _UnreadColumns(self), digest)
            return
        from raymill.data.demo.embedded import entries

        for number, entry in enumerate(entries(span.name, self.fraction, self.seed)):
            digest.update(canonical_json(entry.record).encode())
            value, record = self.embedded(entry)
            assert not isinstance(value, Problem), f"the embedded corpus is well-formed: {value}"
            split = VALIDATION if entry.held_out else TRAIN
            yield ParsedRecord(split, value, record, span, number)

    def _split(self, span: InputRange, record: dict[str, object], first_user: str) -> str | Bad:
        """Return the split of a record: its file's, or by the group column, or by the first question."""
        if span.split == BY_RECORD and self.group_column is None:
            return VALIDATION if is_held_out(first_user, self.fraction, self.seed) else TRAIN
        split = record_split(span, record, self.group_column, self.fraction, self.seed)
        return Bad("", split.why, cause="group", record=record) if isinstance(split, Bad) else split


class _UnreadColumns(Generic[V]):
    """A parser of one input that also reports the columns of a table that aren't read at all."""

    def __init__(self, parser: MessageParser[V]) -> None:
        self._parser = parser
        self._unread: tuple[str, ...] = ()

    def parse_text(self, text: str, values: Record, span: InputRange, place: Place) -> Bad:
        return self._parser.parse_text(text, values, span, place)

    def parse_record(self, record: Record, span: InputRange, place: Place) -> ParsedRecord[V] | Bad:
        parsed = self._parser.parse_record(record, span, place)
        if isinstance(parsed, Bad) or not self._unread:
            return parsed
        return replace(parsed, unused=(*parsed.unused, *self._unread))

    def columns(self, stored: pa.Schema, span: InputRange) -> list[str] | Bad:
        wanted = self._parser.columns(stored, span)
        if not isinstance(wanted, Bad):
            self._unread = unread_names(stored.names, wanted)
        return wanted


class RecordReader(Generic[V]):
    """Read a unit's records, count and quarantine the unusable ones, and count unused keys by name."""

    def __init__(self, index: int, unit: Unit, parser: MessageParser[V]) -> None:
        self._index, self._unit, self._parser = index, unit, parser
        self._causes: Counter[str] = Counter()
        self._unused: Counter[str] = Counter()
        self._quarantine: list[dict[str, object]] = []
        self._inputs: list[InputDigest] = []
        self._records = 0

    def usable(self) -> Iterator[ParsedRecord[V]]:
        """Yield the usable records in order."""
        for span in self._unit:
            digest = hashlib.sha256()
            for record in self._parser.read(span, digest):
                self._records += record.count if isinstance(record, Bad) else 1
                if isinstance(record, Bad):
                    self._refuse(record)
                else:
                    self._count_unused(record.unused)
                    yield record
            self._inputs.append(
                InputDigest(span.name, span.offset, span.length, digest.hexdigest())
            )

    def refuse(self, record: ParsedRecord[V], problem: Problem) -> None:
        """Quarantine a record that `usable` yielded and that turned out to be unusable."""
        self._refuse(Bad(record.where, problem.why, cause=problem.cause, record=record.record))

    def finish(
        self, folder: Path, shards: dict[str, Shard], documents: int, facts: Mapping[str, object]
    ) -> UnitResult:
        """Write the unit's quarantine file and return its result; causes and unused keys join `facts`."""
        lines = "".join(canonical_json(entry) + "\n" for entry in self._quarantine)
        write_atomic(quarantine_path(folder, self._index), lines)
        return UnitResult(
            index=self._index,
            shards=shards,
            inputs=tuple(self._inputs),
            documents=documents,
            records=self._records,
            bad=self._causes.total(),
            bad_examples=tuple(
                f"{entry['where']}: {entry['why']}" for entry in self._quarantine[:EXAMPLES]
            ),
            bytes_read=sum(span.length for span in self._unit),
            facts={
                "causes": dict(sorted(self._causes.items())),
                "unused": dict(sorted(self._unused.items())),
                **facts,
            },
        )

    def _refuse(self, bad: Bad) -> None:
        self._causes[bad.cause] += bad.count
        # All bad records are counted, but only the first ones are kept.
        if len(self._quarantine) >= QUARANTINED:
            return
        entry: dict[str, object] = {"where": bad.where, "cause": bad.cause, "why": bad.why}
        if bad.record is not None:
            # A record that JSON can't hold is named by its location alone.
            try:
                text = canonical_json(bad.record)
                text.encode("utf-8")
                if len(text) <= QUARANTINED_CHARACTERS:
                    entry["record"] = bad.record
            except (TypeError, ValueError, RecursionError):
                pass
        self._quarantine.append(entry)

    def _count_unused(self, names: Iterable[str]) -> None:
        for name in names:
            # Records with generated keys would otherwise make the counter grow without limit.
            listed = name in self._unused or len(self._unused) < UNUSED_NAMES
            self._unused[name if listed else OTHER_KEYS] += 1


def quarantine_path(folder: Path, index: int) -> Path:
    """Return the file of a unit's unusable records."""
    return folder / UNITS_FOLDER / f"{index:05d}.quarantine.jsonl"
