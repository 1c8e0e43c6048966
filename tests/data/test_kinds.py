"""A kind that the package doesn't have: one parser, one unit and a configuration, prepared and read back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

import sections
from data.chat_factory import write_jsonl
from data.preparing import describe, find_prepared, prepare
from data.prompts.prompts_factory import stored_rows
from raymill.data.kinds import KINDS
from raymill.data.messages.kind import MessageKind, total_statistics
from raymill.data.messages.problems import Problem
from raymill.data.messages.records import MessageParser, ParsedRecord
from raymill.data.messages.report import prepared_tokenizer
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.messages.unit import (
    MessageRow,
    MessageSettings,
    MessageUnit,
    RowSegment,
    statistics_by_split,
)
from raymill.data.sources.counters import Counters
from raymill.data.sources.inputs import Unit
from raymill.data.store.manifest import DataManifest, PreparedData
from raymill.data.store.rows import ROW_COLUMNS, TOKEN_COLUMNS
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.text.unit import UnitResult
from raymill.schema.data_sections import MessagesConfig, ValidationConfig
from raymill.schema.jobs import MessagesPrepareJob
from raymill.schema.sections import ClusterConfig, TrackingConfig
from raymill.schema.storage import StorageConfig
from sections import plain

if TYPE_CHECKING:
    from raymill.data.demo.stdlib_conversations import ConversationEntry


@dataclass(frozen=True)
class Quote:
    """A sentence and its author, by whom quotes are grouped."""

    text: str
    first_user: str
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class QuotesConfig(MessagesConfig):
    """Sentences that people said."""

    source: Literal["quotes"]


@dataclass(frozen=True, kw_only=True)
class QuoteParser(MessageParser[Quote]):
    """Parse `{"quote", "by"}`."""

    noun = "a quote"
    other_columns = ("by",)
    formats = {"quotes": (("quote",),)}  # noqa: RUF012

    def parse(self, record: Mapping[str, object]) -> Quote | Problem:
        text, author = record.get("quote"), record.get("by")
        if not isinstance(text, str) or not isinstance(author, str):
            return Problem("format", "expected a quote and its author")
        return Quote(text, author, tuple(name for name in record if name not in ("quote", "by")))

    def embedded(self, entry: ConversationEntry) -> NoReturn:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class QuoteSettings(MessageSettings):
    reading: QuoteParser

    def work(self, index: int, unit: Unit) -> UnitResult:
        return QuoteUnit(index, unit, self).run()


@dataclass
class QuoteStatistics(Counters):
    quotes: int = 0


class QuoteUnit(MessageUnit[Quote, NDArray[np.uint32], RowSegment]):
    kind = "quotes"

    def __init__(self, index: int, unit: Unit, settings: QuoteSettings) -> None:
        super().__init__(index, unit, settings, settings.reading)
        self._statistics = {split: QuoteStatistics() for split in (TRAIN, VALIDATION)}

    def encode(self, values: Sequence[Quote]) -> Iterator[NDArray[np.uint32] | Problem]:
        for quote in values:
            asked = {"role": "user", "content": quote.text}
            ids = np.array(self._encoder.prompt_ids([asked]), dtype=np.uint32)
            fits = len(ids) <= self._settings.capacity
            yield ids if fits else Problem("over_long", f"{len(ids)} tokens")

    def add(self, record: ParsedRecord[Quote], encoded: NDArray[np.uint32]) -> None:
        weight = np.full(len(encoded), 0.5, dtype=np.float32)
        self._collect(record.split, RowSegment(encoded, weight, len(record.value.text.encode())))
        self._statistics[record.split].quotes += 1

    def arrange(self, split: str, collected: Sequence[RowSegment]) -> Iterator[MessageRow]:
        for number, segment in enumerate(self._shuffled(split, collected)):
            yield MessageRow((segment,), {"record": number})

    def facts(self) -> Mapping[str, object]:
        return {"statistics": statistics_by_split(self._statistics)}


class QuoteKind(MessageKind[QuotesConfig, Quote]):
    name = "quotes"
    row_noun = "quote"
    plural = description = "quotes"

    def parser(self, data: QuotesConfig, fraction: float, seed: int) -> QuoteParser:
        return QuoteParser(group_column=None, fraction=fraction, seed=seed)

    def settings(
        self, data: QuotesConfig, tokenizer: ChatTokenizer, folder: Path, seed: int
    ) -> QuoteSettings:
        return QuoteSettings(
            folder=str(folder),
            reading=self.parser(data, data.validation.fraction, seed),
            tokenizer=tokenizer.identity,
            template_sha256=tokenizer.template_sha256,
            sequence_length=data.sequence_length,
            row_group_rows=data.row_group_rows,
            seed=seed,
        )

    def facts(
        self,
        data: QuotesConfig,
        tokenizer: ChatTokenizer,
        folder: Path,
        results: Sequence[UnitResult],
        manifest: DataManifest,
    ) -> Mapping[str, NoReturn]:
        counted = total_statistics(QuoteStatistics, results)
        assert counted[TRAIN].quotes == manifest.splits[TRAIN].rows
        return {}

    def figures(self, prepared: PreparedData, records: int) -> list[tuple[str, str]]:
        return [("quotes", f"{prepared.manifest.documents} of {records}")]

    def preview(self, prepared: PreparedData, count: int, console: Console | None = None) -> None:
        raise NotImplementedError


@pytest.mark.usefixtures("no_ray")
def test_a_fourth_kind_is_prepared_and_read_back(
    tokenizer: ChatTokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(KINDS, QuotesConfig, QuoteKind())
    plain_messages = {"template": "auto", "special_tokens": ()}
    monkeypatch.setitem(sections.PLAIN, "QuotesConfig", plain_messages)
    monkeypatch.setitem(sections.PLAIN, "MessagesPrepareJob", sections.PLAIN["PromptsPrepareJob"])
    monkeypatch.setitem(TOKEN_COLUMNS, "quotes", {"weight": "float32"})
    monkeypatch.setitem(ROW_COLUMNS, "quotes", {"record": "int64"})
    records = [{"quote": f"Word {n}.", "by": f"author {n % 12}", "year": 1900} for n in range(50)]
    bad = [{"quote": 5}, {"quote": "x" * 200, "by": "y"}]
    path = write_jsonl(tmp_path / "quotes.jsonl", [*records, *bad])
    made: MessagesPrepareJob = plain(
        MessagesPrepareJob,
        parent="parent",
        data=plain(
            QuotesConfig, name="q", source="quotes", path=(str(path),), sequence_length=80,
            row_group_rows=4, max_bad_fraction=0.1, validation=plain(ValidationConfig, fraction=0.3),
        ),
        cluster=plain(ClusterConfig, "local", "local"),
        tracking=plain(TrackingConfig, "none", uri="none"),
        storage=plain(StorageConfig, str(tmp_path)),
        seed=3,
    )  # fmt: skip
    assert "not finished" in describe(made, tokenizer)
    prepared = prepare(made, tokenizer)
    assert "not finished" not in describe(made, tokenizer)
    assert find_prepared(made, tokenizer) == prepared
    said = capsys.readouterr().out
    assert "quotes        50 of 52" in said
    assert "bad           2 (1 format, 1 over_long)" in said
    assert "unused        year, in 50 records" in said

    words = prepared_tokenizer(prepared)
    authors: dict[str, set[str]] = {TRAIN: set(), VALIDATION: set()}
    found = []
    for split, row in stored_rows(prepared):
        assert row.weight is not None and row.record is not None and row.bytes is not None
        ids = row.tokens[0, : row.length[0]].tolist()
        text = words.decode(ids, skip_special_tokens=False)
        quote = text.split("user\n")[1].split("<|im_end|>")[0]
        assert int(row.bytes[0]) == len(quote)
        assert set(row.weight[0, : row.length[0]].tolist()) == {0.5}
        authors[split].add(next(one["by"] for one in records if one["quote"] == quote))
        found.append(quote)
    assert sorted(found) == sorted(str(one["quote"]) for one in records)
    assert authors[TRAIN] and authors[VALIDATION] and not authors[TRAIN] & authors[VALIDATION]
