"""Facts about prepared data that its manifest states: what was left out, what repeats, what each kind
adds."""

from __future__ import annotations

from dataclasses import dataclass

from raymill.data.store.tables import Table, TableFile
from raymill.durable import JsonObject
from raymill.errors import DataError


@dataclass(frozen=True)
class BadInputs:
    """Number of records that were left out; `examples` names the first few as "file:line:
    reason"."""

    count: int
    examples: tuple[str, ...]


def limited_bad_inputs(
    bad: BadInputs, records: int, limit: float, *, causes: str = "", kept: str = ""
) -> BadInputs:
    """Return the bad records; raise DataError if they are more than this share of all records.

    `causes` and `kept` are parts of the message: how often which cause occurred, and where they are kept.
    """
    if bad.count > limit * records:
        named = "\n".join(f"  {text}" for text in bad.examples)
        left = bad.count - len(bad.examples)
        more = f"\n  … and {left} more" if left else ""
        raise DataError(
            f"{bad.count} of {records} records can't be used{causes}, more than "
            f"data.max_bad_fraction={limit:g} allows:\n{named}{more}{kept}\n"
            "Fix or remove them, or raise data.max_bad_fraction."
        )
    return bad


@dataclass(frozen=True)
class Contamination:
    """Share of the held-out text that also occurs in training text.

    `share` is over the positions of held-out n-grams (of `unit`s, inside one document);
    `distinct_share` counts each different n-gram once. `sampled` is the fraction of n-grams that
    was examined, chosen by hash.
    """

    n: int
    unit: str
    share: float
    distinct_share: float
    held_out: int
    sampled: float


@dataclass(frozen=True)
class TextFacts:
    """Facts about prepared text that describe it and don't shape it.

    `lineage` lists the sidecars of the shards (see `lineage.py`), `fertility` has counts by source and
    language, `packing` those of documents and their rows, by split.
    """

    fertility: JsonObject
    packing: JsonObject
    lineage: Table[TableFile]


@dataclass(frozen=True)
class ChatFacts:
    """Facts about prepared conversations.

    `questions` is a file of held-out questions and their answers next to the shards, for scoring
    generated answers. `learned_tokens` and `conversations` count training rows only; `packing` is
    the share of the rows' positions that hold a token.
    """

    template_sha256: str
    end_of_turn_id: int
    conversations: int
    learned_tokens: int
    packing: float
    questions: str
    questions_sha256: str
    statistics: JsonObject


@dataclass(frozen=True)
class PreferenceFacts:
    """Facts about prepared preferences; `pairs` and `prompts` count training rows only.

    `prompts` counts distinct prompts: all pairs of one prompt together weigh 1.
    """

    template_sha256: str
    end_of_turn_id: int
    pairs: int
    prompts: int
    statistics: JsonObject


@dataclass(frozen=True)
class PromptsFacts:
    """Facts about prepared prompts; `prompts` counts training rows only.

    `book` is a file next to the shards with every prompt's messages, answer and verifier, indexed
    by the number in a row's `record` column.
    """

    template_sha256: str
    end_of_turn_id: int
    prompts: int
    book: str
    book_sha256: str
    statistics: JsonObject
