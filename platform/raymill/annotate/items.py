"""What is asked: prompts with the answers that are to be compared, or that a person is to answer.

An item is named by everything that determines its answers, so a restart finds them again, and another
model, setting or seed makes other items beside which the earlier judgements stay.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raymill.annotate.database import Database
from raymill.data.store.split import hash_fraction
from raymill.durable import canonical_json, sha256_json, sha256_text

Mode = Literal["rank", "write"]
Messages = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Item:
    """A prompt to be judged or answered. `reference`: the right answer, where the prompt has one; it is
    for synthetic judges and isn't shown."""

    item_id: str
    prompt_id: str
    messages: Messages
    reference: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a model wrote. `text` and `ids` are without the end of turn; `finish` "length": cut off."""

    text: str
    ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    model: str
    model_digest: str
    seed: int
    settings: dict[str, Any]

    @property
    def evidence(self) -> dict[str, Any]:
        """What a judgement remembers of an answer that it was shown."""
        known = asdict(self)
        del known["text"], known["ids"]
        return {"sha256": sha256_text(self.text), **known}


@dataclass(frozen=True)
class Counts:
    """Items of the present configuration: all, those with their answers, those that have none worth
    comparing."""

    all: int
    ready: int
    unusable: int

    @property
    def waiting(self) -> int:
        return self.all - self.ready - self.unusable


def item_of(
    mode: Mode,
    prompt_id: str,
    messages: Sequence[dict[str, Any]],
    reference: str | None,
    drawn: dict[str, Any],
) -> Item:
    """An item and its name; `drawn`: how its answers are made, as plain JSON."""
    identity = {"mode": mode, "messages": list(messages), "drawn": drawn}
    return Item(sha256_json(identity)[:32], prompt_id, tuple(messages), reference)


def set_items(database: Database, mode: Mode, items: Sequence[Item]) -> None:
    """Make these the items that are asked, in this order; what is known of them stays known."""
    with database.act() as connection:
        connection.execute("UPDATE items SET active = 0")
        connection.executemany(
            "INSERT INTO items VALUES (?, ?, 1, ?, ?, ?, ?, ?, NULL) ON CONFLICT (item_id) DO UPDATE "
            "SET active = 1, place = excluded.place, reference = excluded.reference",
            [
                (
                    item.item_id,
                    place,
                    mode,
                    item.prompt_id,
                    canonical_json(list(item.messages)),
                    item.reference,
                    int(mode == "write"),  # a person's answer needs no preparation
                )
                for place, item in enumerate(items)
            ],
        )


def waiting_items(database: Database, most: int) -> list[tuple[int, Item]]:
    """The first items that lack answers, each with its place."""
    rows = database.rows(
        "SELECT * FROM items WHERE active AND NOT ready AND unusable IS NULL ORDER BY place LIMIT ?",
        most,
    )
    return [(row["place"], _item(row)) for row in rows]


def keep_answers(database: Database, item: Item, answers: Sequence[Answer]) -> None:
    """Store an item's answers, for good: judgements are about these."""
    with database.act() as connection:
        connection.executemany(
            "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    item.item_id,
                    place,
                    sha256_text(answer.text),
                    answer.text,
                    json.dumps(answer.ids),
                    answer.finish,
                    answer.model,
                    answer.model_digest,
                    answer.seed,
                    canonical_json(answer.settings),
                )
                for place, answer in enumerate(answers)
            ],
        )
        connection.execute("UPDATE items SET ready = 1 WHERE item_id = ?", (item.item_id,))


def set_unusable(database: Database, item: Item, why: str) -> None:
    """Leave an item out, and remember why."""
    with database.act() as connection:
        connection.execute("UPDATE items SET unusable = ? WHERE item_id = ?", (why, item.item_id))


def ready_items(database: Database) -> list[Item]:
    """The items that can be judged, in their order."""
    return [
        _item(row)
        for row in database.rows("SELECT * FROM items WHERE active AND ready ORDER BY place")
    ]


def find_item(database: Database, item_id: str) -> Item | None:
    """The item of that name, if it is asked at present and ready."""
    rows = database.rows("SELECT * FROM items WHERE item_id = ? AND active AND ready", item_id)
    return _item(rows[0]) if rows else None


def answers_of(database: Database, item_id: str) -> list[Answer]:
    """An item's answers in the order in which they were made."""
    return [
        Answer(
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


def count_items(database: Database) -> Counts:
    """How far the answers are."""
    [row] = database.rows(
        "SELECT count(*), ifnull(sum(ready), 0), count(unusable) FROM items WHERE active"
    )
    return Counts(*row)


def unusable_reasons(database: Database) -> list[tuple[str, int]]:
    """Why items are left out, the most frequent reason first."""
    rows = database.rows(
        "SELECT unusable, count(*) AS items FROM items WHERE active AND unusable IS NOT NULL "
        "GROUP BY unusable ORDER BY items DESC, unusable"
    )
    return [(row["unusable"], row["items"]) for row in rows]


def shown_order(annotator: str, item_id: str, answers: int) -> tuple[int, ...]:
    """The order in which someone sees an item's answers: a shuffle that the pair of them determines.

    Over people and items every answer stands everywhere equally often, so a liking for a position
    averages out.
    """
    places = range(answers)
    return tuple(
        sorted(places, key=lambda place: hash_fraction(f"{annotator}\n{item_id}\n{place}", 0))
    )


def _item(row: Any) -> Item:
    messages = tuple(json.loads(row["messages"]))
    return Item(row["item_id"], row["prompt_id"], messages, row["reference"])
