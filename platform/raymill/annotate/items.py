"""Items of a ranking: prompts with the sampled answers to rank, or prompts for a person to answer.

An item is named by everything that determines its answers. A restart therefore finds the same items again,
and another model, setting or seed makes other items without touching earlier judgments.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from raymill.annotate.database import Database
from raymill.data.store.split import hash_fraction
from raymill.durable import canonical_json, sha256_json, sha256_text

Mode = Literal["rank", "write"]
Messages = tuple[Mapping[str, object], ...]


@dataclass(frozen=True)
class Item:
    """A prompt to rank answers to, or to answer. `reference`: the right answer, where the prompt has one;
    ranking rules use it, and people never see it."""

    item_id: str
    prompt_id: str
    messages: Messages
    reference: str | None = None


@dataclass(frozen=True)
class SampledAnswer:
    """A model's answer. `text` and `ids` exclude the end-of-turn token; `finish` "length": cut off.

    `ids` is empty where only the text is known.
    """

    text: str
    ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    model: str
    model_digest: str
    seed: int
    settings: Mapping[str, object]

    @property
    def evidence(self) -> dict[str, object]:
        """Facts about the answer that each judgment stores: a digest of the text and its origin."""
        facts = asdict(self)
        del facts["text"], facts["ids"]
        return {"sha256": sha256_text(self.text), **facts}


@dataclass(frozen=True)
class ItemCounts:
    """Numbers of active items: all, those with their answers, and those left out as unusable."""

    all: int
    ready: int
    unusable: int

    @property
    def waiting(self) -> int:
        return self.all - self.ready - self.unusable


def make_item(
    mode: Mode,
    prompt_id: str,
    messages: Sequence[Mapping[str, object]],
    reference: str | None,
    sampling: Mapping[str, object],
) -> Item:
    """Build an item and its name. `sampling`: how its answers are made, as plain JSON."""
    # The key "drawn" is part of every stored item's name.
    identity = {"mode": mode, "messages": list(messages), "drawn": sampling}
    return Item(sha256_json(identity)[:32], prompt_id, tuple(messages), reference)


def messages_name(messages: Sequence[Mapping[str, object]]) -> str:
    """Return the id of a prompt that has none of its own: a digest of its messages."""
    return sha256_text(canonical_json(list(messages)))[:16]


def set_items(database: Database, mode: Mode, items: Sequence[Item]) -> None:
    """Make these items the active ones, in this order; answers and judgments of known items stay."""
    with database.transaction() as connection:
        connection.execute("UPDATE items SET active = 0")
        # A known item keeps its answers and judgments; only its position and reference may change.
        connection.executemany(
            "INSERT INTO items VALUES (?, ?, 1, ?, ?, ?, ?, ?, NULL) ON CONFLICT (item_id) DO UPDATE "
            "SET active = 1, place = excluded.place, reference = excluded.reference",
            [
                (
                    item.item_id,
                    position,
                    mode,
                    item.prompt_id,
                    canonical_json(list(item.messages)),
                    item.reference,
                    # In write mode there is nothing to sample, so an item is ready at once.
                    int(mode == "write"),
                )
                for position, item in enumerate(items)
            ],
        )


def waiting_items(database: Database, limit: int) -> list[tuple[int, Item]]:
    """Return the first `limit` items that lack answers, each with its position."""
    rows = database.rows(
        "SELECT * FROM items WHERE active AND NOT ready AND unusable IS NULL ORDER BY place LIMIT ?",
        limit,
    )
    return [(row["place"], _item(row)) for row in rows]


def keep_answers(database: Database, item: Item, answers: Sequence[SampledAnswer]) -> None:
    """Store an item's answers for good: judgments refer to exactly these texts."""
    with database.transaction() as connection:
        _insert_answers(connection, item, answers)
        connection.execute("UPDATE items SET ready = 1 WHERE item_id = ?", (item.item_id,))


def add_ready_item(database: Database, item: Item, answers: Sequence[SampledAnswer]) -> None:
    """Add one item for ranking with its answers to the active ones; a known item becomes active again.

    The answers are part of the item's name, as `make_item` received them, so a known item has these answers.
    """
    with database.transaction() as connection:
        known = connection.execute(
            "UPDATE items SET active = 1 WHERE item_id = ?", (item.item_id,)
        ).rowcount
        if known:
            return
        connection.execute(
            "INSERT INTO items SELECT ?, ifnull(max(place) + 1, 0), 1, 'rank', ?, ?, ?, 1, NULL FROM items",
            (item.item_id, item.prompt_id, canonical_json(list(item.messages)), item.reference),
        )
        _insert_answers(connection, item, answers)


def _insert_answers(
    connection: sqlite3.Connection, item: Item, answers: Sequence[SampledAnswer]
) -> None:
    connection.executemany(
        "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                item.item_id,
                number,
                sha256_text(answer.text),
                answer.text,
                json.dumps(answer.ids),
                answer.finish,
                answer.model,
                answer.model_digest,
                answer.seed,
                canonical_json(answer.settings),
            )
            for number, answer in enumerate(answers)
        ],
    )


def set_unusable(database: Database, item: Item, reason: str) -> None:
    """Leave an item out and store the reason."""
    with database.transaction() as connection:
        connection.execute(
            "UPDATE items SET unusable = ? WHERE item_id = ?", (reason, item.item_id)
        )


def ready_items(database: Database) -> list[Item]:
    """Return the items that can be ranked, in order."""
    return [
        _item(row)
        for row in database.rows("SELECT * FROM items WHERE active AND ready ORDER BY place")
    ]


def find_item(database: Database, item_id: str) -> Item | None:
    """Return the item of that name if it is active and ready."""
    rows = database.rows("SELECT * FROM items WHERE item_id = ? AND active AND ready", item_id)
    return _item(rows[0]) if rows else None


def answers_to(database: Database, item_id: str) -> list[SampledAnswer]:
    """Return an item's answers in the order in which they were sampled."""
    return [
        SampledAnswer(
            row["text"],
            tuple(json.loads(row["ids"])),
            row["finish"],
            row["model"],
            row["model_digest"],
            row["seed"],
            json.loads(row["settings"]),
        )
        for row in database.rows("SELECT * FROM answers WHERE item_id = ? ORDER BY place", item_id)
    ]


def count_items(database: Database) -> ItemCounts:
    """Count the active items: all, ready, unusable."""
    [row] = database.rows(
        "SELECT count(*), ifnull(sum(ready), 0), count(unusable) FROM items WHERE active"
    )
    return ItemCounts(*row)


def unusable_reasons(database: Database) -> list[tuple[str, int]]:
    """Return the reasons for leaving items out, each with its count, the most frequent first."""
    rows = database.rows(
        "SELECT unusable, count(*) AS items FROM items WHERE active AND unusable IS NOT NULL "
        "GROUP BY unusable ORDER BY items DESC, unusable"
    )
    return [(row["unusable"], row["items"]) for row in rows]


def shown_order(annotator: str, item_id: str, answers: int) -> tuple[int, ...]:
    """Return the order in which an annotator sees an item's answers: a shuffle seeded by the two names.

    Over many annotators and items each answer appears equally often in each position, so a preference for
    a position averages out.
    """
    return tuple(
        sorted(
            range(answers), key=lambda number: hash_fraction(f"{annotator}\n{item_id}\n{number}", 0)
        )
    )


def _item(row: sqlite3.Row) -> Item:
    messages = tuple(json.loads(row["messages"]))
    return Item(row["item_id"], row["prompt_id"], messages, row["reference"])
