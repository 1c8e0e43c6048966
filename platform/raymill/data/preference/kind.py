"""The kind "preference": compared answers; a row holds a better answer and a worse one, each with its prompt.

A prompt counts once, however many pairs were made of its answers: its weight is shared out over them. That is
done within a unit and split, since units are independent of one another. Data in which the pairs of one prompt
are far apart is best sorted by prompt, so that they fall into one unit.

Legend: n tokens of an answer with its prompt.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from raymill.data.messages.encode import EncodedChat
from raymill.data.messages.formats import SHARED_COLUMNS
from raymill.data.messages.kind import MessageKind, total_statistics
from raymill.data.messages.problems import Problem
from raymill.data.messages.records import MessageParser, ParsedRecord, Ways
from raymill.data.messages.report import (
    StoredSegment,
    colored,
    prepared_tokenizer,
    say_legend,
    training_rows,
    unused_keys,
)
from raymill.data.messages.thinking import Thinking
from raymill.data.messages.tokenizer import ChatTokenizer
from raymill.data.messages.unit import (
    MessageRow,
    MessageSettings,
    MessageUnit,
    RowSegment,
    statistics_by_split,
)
from raymill.data.preference.comparison import Comparison, read_comparison
from raymill.data.preference.formats import COLUMNS, PROMPTS
from raymill.data.preference.judgments import (
    agreement,
    from_texts,
    hash64,
    judgment,
    pair_counts,
    shared_prompts,
    to_text,
)
from raymill.data.preference.statistics import PreferenceStatistics, agreement_text, summary_lines
from raymill.data.sources.inputs import Unit
from raymill.data.store.facts import PreferenceFacts
from raymill.data.store.manifest import DataManifest, PreparedData
from raymill.data.store.split import TRAIN, VALIDATION
from raymill.data.text.unit import UnitResult
from raymill.schema.data_sections import PreferenceConfig

if TYPE_CHECKING:
    from raymill.data.demo.stdlib_conversations import ConversationEntry


@dataclass(frozen=True, kw_only=True)
class PreferenceParser(MessageParser[Comparison]):
    """Parse records as comparisons."""

    format: str | None = None  # None: detected from each record's columns

    noun = "a comparison"
    other_columns = (*PROMPTS, *SHARED_COLUMNS, "margin", "tie", "annotator")

    def parse(self, record: Mapping[str, object]) -> Comparison | Problem:
        return read_comparison(record, self.format)

    def embedded(self, entry: ConversationEntry) -> NoReturn:
        raise NotImplementedError("no embedded conversation has a worse answer to compare")

    @property
    def formats(self) -> Mapping[str, Ways]:
        return {self.format: COLUMNS[self.format]} if self.format else COLUMNS


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings(MessageSettings):
    """Settings that all units of comparisons share; `sequence_length` is of one answer with its prompt."""

    reading: PreferenceParser
    thinking: Thinking
    row_predictions: int  # of both answers

    def work(self, index: int, unit: Unit) -> UnitResult:
        """Parse, encode and write a unit."""
        return PreferenceUnit(index, unit, self).run()


@dataclass(frozen=True)
class EncodedAnswer:
    """A prompt with one answer: ids [n], which of them are learned [n], and the bytes of the learned text.

    `digest` is of the ids: answers that are encoded alike have equal digests.
    """

    ids: NDArray[np.uint32]
    learned: NDArray[np.bool_]
    learned_tokens: int
    learned_bytes: int
    digest: bytes

    @classmethod
    def from_chat(cls, chat: EncodedChat) -> EncodedAnswer:
        """Keep what a row needs of an encoded conversation."""
        return cls(
            chat.ids,
            chat.learned,
            int(chat.learned.sum()),
            int(chat.token_bytes[chat.learned].sum()),
            hashlib.blake2b(chat.ids.tobytes(), digest_size=16).digest(),
        )

    @property
    def size(self) -> tuple[int, int]:
        """(tokens, learned tokens)."""
        return len(self.ids), self.learned_tokens

    def segment(self, weight: float) -> RowSegment:
        """Return the answer as a part of a row, with one weight for all learned tokens."""
        return RowSegment(self.ids, self.learned * np.float32(weight), self.learned_bytes)


@dataclass(frozen=True)
class EncodedPair:
    """A better and a worse answer, the hash of their prompt, and the number and weight of their comparison."""

    chosen: EncodedAnswer
    rejected: EncodedAnswer
    prompt: int
    record: int
    weight: float
    margin: float


class PreferenceUnit(MessageUnit[Comparison, list[EncodedAnswer], EncodedPair]):
    """A unit of comparisons."""

    kind = "preference"
    _settings: PreferenceSettings

    def __init__(self, index: int, unit: Unit, settings: PreferenceSettings) -> None:
        super().__init__(index, unit, settings, settings.reading)
        self._statistics = {split: PreferenceStatistics() for split in (TRAIN, VALIDATION)}
        self._judgments: dict[str, list[tuple[int, int, int, int]]] = {TRAIN: [], VALIDATION: []}

    @property
    def row_predictions(self) -> int:
        return self._settings.row_predictions

    def encode(self, values: Sequence[Comparison]) -> Iterator[list[EncodedAnswer] | Problem]:
        answers = [answer for comparison in values for answer in comparison.answers]
        # Only the answers are learned, so it doesn't matter if a template rewrites the turns of the prompt.
        encoded = iter(self._encoder.encode(answers, "all", self._settings.thinking))
        for comparison in values:
            yield self._checked(comparison, list(islice(encoded, len(comparison.answers))))

    def add(self, record: ParsedRecord[Comparison], encoded: list[EncodedAnswer]) -> None:
        comparison, split = record.value, record.split
        # Pairs are grouped by a hash of the prompt, which is kept instead of its text.
        statistics, prompt = self._statistics[split], hash64(comparison.prompt_key.encode())
        statistics.comparisons += 1
        statistics.ties += len(comparison.ties)
        statistics.weighted += comparison.weight != 1.0
        compared = [(pair.better, pair.worse, False) for pair in comparison.pairs]
        compared += [(first, second, True) for first, second in comparison.ties]
        self._judgments[split] += [
            judgment(
                encoded[first].digest, encoded[second].digest, tie, prompt, comparison.annotator
            )
            for first, second, tie in compared
            if encoded[first].digest != encoded[second].digest
        ]
        for pair in comparison.pairs:
            chosen, rejected = encoded[pair.better], encoded[pair.worse]
            statistics.add(chosen.size, rejected.size, pair.margin)
            self._collect(
                split,
                EncodedPair(
                    chosen, rejected, prompt, self._next_number(), comparison.weight, pair.margin
                ),
            )

    def arrange(self, split: str, collected: Sequence[EncodedPair]) -> Iterator[MessageRow]:
        pairs_of_prompt = Counter(pair.prompt for pair in collected)
        for pair in self._shuffled(split, collected):
            # A ranking of k answers gives up to k(k - 1)/2 pairs, which count as one prompt together.
            weight = pair.weight / pairs_of_prompt[pair.prompt]
            segments = (pair.chosen.segment(weight), pair.rejected.segment(weight))
            yield MessageRow(segments, {"record": pair.record, "margin": pair.margin})

    def facts(self) -> Mapping[str, object]:
        return {
            "statistics": statistics_by_split(self._statistics),
            "judgements": {
                split: to_text(judgments) for split, judgments in self._judgments.items()
            },
        }

    def _checked(
        self, comparison: Comparison, chats: Sequence[EncodedChat | Problem]
    ) -> list[EncodedAnswer] | Problem:
        capacity, answers = self._settings.capacity, []
        for chat, name in zip(chats, comparison.names, strict=True):
            if isinstance(chat, Problem):
                return Problem(chat.cause, f"{name}: {chat.why}")
            if len(chat.ids) > capacity:
                why = (
                    f"{len(chat.ids)} tokens with its prompt, more than the {capacity} of an answer"
                )
                return Problem("over_long", f"{name}: {why}")
            answers.append(EncodedAnswer.from_chat(chat))
        for pair in comparison.pairs:
            # Different texts may be encoded alike: the template may drop the difference.
            if answers[pair.better].digest == answers[pair.worse].digest:
                names = f"{comparison.names[pair.better]} and {comparison.names[pair.worse]}"
                return Problem("same", f"{names} are the same answer")
        return answers


class PreferenceKind(MessageKind[PreferenceConfig, Comparison]):
    """Compared answers, for reward modeling and preference tuning."""

    name = "preference"
    row_noun = "pair"
    plural = "preferences"
    description = "compared answers"

    def parser(self, data: PreferenceConfig, fraction: float, seed: int) -> PreferenceParser:
        return PreferenceParser(
            format=None if data.format == "auto" else data.format,
            group_column=data.validation.group_column,
            fraction=fraction,
            seed=seed,
        )

    def settings(
        self, data: PreferenceConfig, tokenizer: ChatTokenizer, folder: Path, seed: int
    ) -> PreferenceSettings:
        return PreferenceSettings(
            folder=str(folder),
            reading=self.parser(data, data.validation.fraction, seed),
            thinking=data.thinking,
            tokenizer=tokenizer.identity,
            template_sha256=tokenizer.template_sha256,
            sequence_length=data.sequence_length,
            row_predictions=data.row_predictions,
            row_group_rows=data.row_group_rows,
            seed=seed,
        )

    def facts(
        self,
        data: PreferenceConfig,
        tokenizer: ChatTokenizer,
        folder: Path,
        results: Sequence[UnitResult],
        manifest: DataManifest,
    ) -> Mapping[str, PreferenceFacts]:
        judgments = {
            split: from_texts(result.facts["judgements"][split] for result in results)
            for split in (TRAIN, VALIDATION)
        }
        summaries = {
            split: statistics.summary(pair_counts(judgments[split]))
            for split, statistics in total_statistics(PreferenceStatistics, results).items()
        }
        # Of several judgments by one annotator the first counts, so units stay in their order here.
        in_order = from_texts(
            result.facts["judgements"][split] for result in results for split in (TRAIN, VALIDATION)
        )
        facts = PreferenceFacts(
            template_sha256=tokenizer.template_sha256,
            end_of_turn_id=tokenizer.end_of_turn_id,
            pairs=summaries[TRAIN]["pairs"],
            prompts=summaries[TRAIN]["prompts"],
            statistics={
                **summaries,
                # A prompt in both splits makes held-out figures too good.
                "leaked": shared_prompts(judgments[TRAIN], judgments[VALIDATION]),
                "agreement": agreement(in_order),
                "unused": unused_keys(results),
            },
        )
        return {self.name: facts}

    def figures(self, prepared: PreparedData, records: int) -> list[tuple[str, str]]:
        manifest, statistics = prepared.manifest, _facts(prepared).statistics
        train, held_out = statistics[TRAIN], statistics[VALIDATION]
        return [
            (
                "pairs",
                f"{train['pairs']:,} of {train['prompts']:,} prompts to train on, "
                f"{held_out['pairs']:,} of {held_out['prompts']:,} held out, of {records:,} records",
            ),
            *summary_lines(train),
            ("agreement", agreement_text(statistics["agreement"])),
            (
                "rows",
                f"{manifest.splits[TRAIN].rows:,} of 2 × {(manifest.sequence_length + 1) // 2:,} "
                "tokens at most",
            ),
        ]

    def leaked(self, prepared: PreparedData) -> str | None:
        count = _facts(prepared).statistics["leaked"]
        return f"{count:,} prompts" if count else None

    def preview(self, prepared: PreparedData, count: int, console: Console | None = None) -> None:
        console = console or Console(highlight=False)
        tokenizer = prepared_tokenizer(prepared)
        say_legend(console)
        for number, row in zip(range(1, count + 1), training_rows(prepared), strict=False):
            tokens = " and ".join(str(len(ids)) for ids, _ in row)
            learned = " and ".join(str(sum(w > 0 for w in weight)) for _, weight in row)
            # All learned tokens of a row have one weight, so the largest is that of the pair.
            weight = max(w for _, weights in row for w in weights)
            console.rule(
                f"{number}: {tokens} tokens, {learned} learned, weight {weight:.3g}", align="left"
            )
            for name, (ids, weights) in _named_parts(row):
                console.print(Text(name, style="bold underline"))
                console.print(colored(tokenizer, ids, weights), soft_wrap=True)


def _facts(prepared: PreparedData) -> PreferenceFacts:
    facts = prepared.manifest.preference
    assert facts is not None, f"{prepared.folder} holds preferences"
    return facts


def _named_parts(row: Sequence[StoredSegment]) -> list[tuple[str, StoredSegment]]:
    """Return the prompt once, then both answers; where a template wrote two prompts, each with its own."""
    starts = [next(n for n, w in enumerate(weight) if w > 0) for _, weight in row]
    named = [("chosen", row[0]), ("rejected", row[1])]
    prompts = [ids[:start] for (ids, _), start in zip(row, starts, strict=True)]
    if prompts[0] != prompts[1]:
        return named
    return [
        ("prompt", (prompts[0], [0.0] * starts[0])),
        *(
            (name, (ids[start:], weight[start:]))
            for (name, (ids, weight)), start in zip(named, starts, strict=True)
        ),
    ]
