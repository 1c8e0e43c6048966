"""Who does what next: items with the fewest judgements first, each once for everyone, nobody in another's way.

What someone works at is theirs for a few minutes. A lease only spares needless work: whoever comes too
late is recorded all the same.
"""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Any, Literal

from raymill.annotate.database import Database
from raymill.annotate.items import (
    Answer,
    Item,
    Mode,
    answers_of,
    count_items,
    find_item,
    shown_order,
)
from raymill.annotate.judgements import HUMAN, lease, task_name

LEASE_S = 300.0

# `:me` sees nothing twice; `:target` judgements are enough; `held` counts others at work.
_LEASES = (
    "(SELECT count(*) FROM leases WHERE task = {task} AND annotator {who} :me AND until > :now)"
)
_AT_WORK = "{} AS held, {} AS own".format(
    _LEASES.format(task="{task}", who="!="), _LEASES.format(task="{task}", who="=")
)
_REJECTED = """(SELECT count(*) FROM standing AS writing JOIN verdicts ON verdicts.about = writing.number
    WHERE writing.item_id = items.item_id AND verdicts.decision = 'reject' AND {whose})"""
# Of the view `ranked` or `written`. What was rejected goes back to its author, and to others last.
_TO_DO = f"""
SELECT * FROM (
    SELECT item_id, place, {_AT_WORK.format(task="items.item_id")},
        (SELECT count(*) FROM {{decided}} WHERE item_id = items.item_id AND decision != 'skip'
            AND judge = :judge) AS done,
        {_REJECTED.format(whose="writing.annotator = :me")} AS returned,
        {_REJECTED.format(whose="true")} AS rejected
    FROM items WHERE active AND ready AND NOT EXISTS (
        SELECT 1 FROM {{decided}} WHERE item_id = items.item_id AND annotator = :me)
) WHERE done < :target ORDER BY own DESC, returned DESC, rejected, done + held, place
"""
_TO_REVIEW = f"""
SELECT number, item_id, text, {_AT_WORK.format(task="item_id || '/' || number")}
FROM written JOIN items USING (item_id)
WHERE active AND decision = 'write' AND annotator != :me AND number NOT IN (SELECT about FROM verdicts)
    AND NOT EXISTS (SELECT 1 FROM standing WHERE about = written.number AND annotator = :me)
ORDER BY own DESC, number
"""


@dataclass(frozen=True)
class Task:
    """What someone is asked. `answers` stand in the order in which they are shown; `text`: the answer to
    be reviewed, by somebody else than its author; `returned`: an answer to the same question that was
    rejected, and why; `before`: what this person decided, and took back."""

    kind: Literal["rank", "write", "review"]
    item: Item
    answers: tuple[Answer, ...] = ()
    about: int | None = None
    text: str | None = None
    returned: dict[str, str] | None = None
    before: dict[str, Any] | None = None


@dataclass(frozen=True)
class Progress:
    """Judgements by `mine` and in all, of those that are wanted; in write mode, accepted answers, and
    `reviews` that are wanted."""

    mine: int
    done: int
    total: int
    ready: int
    items: int
    reviews: int


def next_task(
    database: Database, mode: Mode, annotator: str, target: int, lease_s: float = LEASE_S
) -> Task | Literal["preparing", "busy", "done"]:
    """What someone is to do now, leased to them; the same again until they have decided.

    "preparing": answers are still being made; "busy": others are at work at all that is left.
    """
    known = {"me": annotator, "now": time.time(), "target": target, "judge": HUMAN}
    with database.act() as connection:
        # Reviews first: whoever wrote is waiting for them.
        found = [] if mode == "rank" else connection.execute(_TO_REVIEW, known).fetchall()
        free = [row for row in found if row["own"] or not row["held"]]
        asked = connection.execute(
            _TO_DO.format(decided="ranked" if mode == "rank" else "written"), known
        ).fetchall()
        free_items = [row for row in asked if row["own"] or row["done"] + row["held"] < target]
        # An item taken back comes before any review but one that is under way.
        if free and not (free_items and free_items[0]["own"]):
            task = _review(database, free[0], annotator)
        elif free_items:
            task = _item_task(database, mode, free_items[0]["item_id"], annotator)
        elif found or asked:
            return "busy"
        else:
            return "preparing" if count_items(database).waiting else "done"
        lease(connection, annotator, task_name(task.item.item_id, task.about), lease_s)
    return task


def keep_lease(database: Database, annotator: str, lease_s: float = LEASE_S) -> None:
    """Someone is still at work at what they were given."""
    with database.act() as connection:
        connection.execute(
            "UPDATE leases SET until = ? WHERE annotator = ?", (time.time() + lease_s, annotator)
        )


def progress(database: Database, mode: Mode, annotator: str, target: int) -> Progress:
    """How far this person, and all of them, are."""
    counts = count_items(database)
    standing = "FROM standing JOIN items USING (item_id) WHERE active AND judge = ?"
    [[mine]] = database.rows(
        f"SELECT count(*) {standing} AND annotator = ? AND decision != 'skip'", HUMAN, annotator
    )
    finished = (
        f"SELECT item_id, count(*) AS judged {standing} AND kind = 'rank' AND decision != 'skip'"
        if mode == "rank"
        else f"SELECT item_id, count(*) AS judged {standing} AND kind = 'review' "
        "AND decision IN ('accept', 'edit') AND about IN (SELECT number FROM standing)"
    )
    [[done]] = database.rows(
        f"SELECT ifnull(sum(min(judged, ?)), 0) FROM ({finished} GROUP BY item_id)", target, HUMAN
    )
    [[reviews]] = database.rows(
        "SELECT count(*) FROM written JOIN items USING (item_id) WHERE active AND decision = 'write' "
        "AND number NOT IN (SELECT about FROM verdicts)"
    )
    items = counts.all - counts.unusable
    return Progress(mine, done, items * target, counts.ready, items, reviews)


def _item_task(database: Database, mode: Mode, item_id: str, annotator: str) -> Task:
    item = find_item(database, item_id)
    assert item is not None  # it was found in this transaction
    before = _before(database, item_id, None, annotator)
    if mode == "write":
        return Task("write", item, returned=_returned(database, item_id), before=before)
    answers = answers_of(database, item_id)
    order = shown_order(annotator, item_id, len(answers))
    return Task("rank", item, tuple(answers[place] for place in order), before=before)


def _review(database: Database, row: sqlite3.Row, annotator: str) -> Task:
    item = find_item(database, row["item_id"])
    assert item is not None  # it was found in this transaction
    before = _before(database, item.item_id, row["number"], annotator)
    return Task("review", item, about=row["number"], text=row["text"], before=before)


def _returned(database: Database, item_id: str) -> dict[str, str] | None:
    """The last answer to this question that was rejected."""
    rows = database.rows(
        "SELECT standing.text, verdicts.reason FROM standing JOIN verdicts "
        "ON verdicts.about = standing.number WHERE standing.item_id = ? "
        "AND verdicts.decision = 'reject' ORDER BY verdicts.number DESC LIMIT 1",
        item_id,
    )
    return {"text": rows[0]["text"], "reason": rows[0]["reason"]} if rows else None


def _before(
    database: Database, item_id: str, about: int | None, annotator: str
) -> dict[str, Any] | None:
    """What this person decided on a task when they last did, if they took it back."""
    rows = database.rows(
        "SELECT * FROM judgements WHERE item_id = ? AND about IS ? AND annotator = ? "
        "ORDER BY number DESC LIMIT 1",
        item_id,
        about,
        annotator,
    )
    if not rows or rows[0]["undone"] is None:
        return None
    row = rows[0]
    ranks = None if row["ranks"] is None else json.loads(row["ranks"])
    return {
        "decision": row["decision"],
        "ranks": ranks,
        "text": row["text"],
        "reason": row["reason"],
    }
