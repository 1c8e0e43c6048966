"""Assignment of tasks: items with the fewest judgments first, each item at most once per annotator.

A task is leased to its annotator for a few minutes. The lease only avoids duplicate work: a decision that
arrives after its lease expired is recorded all the same.
"""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Literal, TypedDict

from raymill.annotate.database import Database
from raymill.annotate.decisions import HUMAN, lease, task_name
from raymill.annotate.items import (
    Item,
    Mode,
    SampledAnswer,
    answers_to,
    count_items,
    find_item,
    shown_order,
)

LEASE_S = 300.0

# `:me` is the annotator, `:target` the judgments wanted per item; `held` counts leases of other annotators,
# `own` those of this one.
_LEASES = (
    "(SELECT count(*) FROM leases WHERE task = {task} AND annotator {who} :me AND until > :now)"
)
_AT_WORK = "{} AS held, {} AS own".format(
    _LEASES.format(task="{task}", who="!="), _LEASES.format(task="{task}", who="=")
)
_REJECTED = """(SELECT count(*) FROM standing AS writing JOIN verdicts ON verdicts.about = writing.number
    WHERE writing.item_id = items.item_id AND verdicts.decision = 'reject' AND {whose})"""
# `decided` is the view `ranked` or `written`. A rejected answer's item returns to its author first, and to
# other annotators last.
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


class TakenBack(TypedDict):
    """A decision that an annotator took back, from which the page starts again."""

    decision: str
    ranks: list[int] | None
    text: str | None
    reason: str | None


@dataclass(frozen=True)
class Task:
    """A task for one annotator.

    `answers` are in the order of the page. `about` and `text`: number and text of the answer to review.
    `returned`: an answer to the same question that was rejected, with the reason. `before`: the
    annotator's own decision that was taken back.
    """

    kind: Literal["rank", "write", "review"]
    item: Item
    answers: tuple[SampledAnswer, ...] = ()
    about: int | None = None
    text: str | None = None
    returned: dict[str, str] | None = None
    before: TakenBack | None = None


@dataclass(frozen=True)
class AnnotationProgress:
    """Numbers for the page's progress bar.

    `mine`: judgments of this annotator. `done` of `total`: judgments of everybody, in write mode accepted
    answers. `ready` of `items`: items with their answers. `reviews`: written answers awaiting a review.
    """

    mine: int
    done: int
    total: int
    ready: int
    items: int
    reviews: int


def next_task(
    database: Database, mode: Mode, annotator: str, target: int, lease_s: float = LEASE_S
) -> Task | Literal["preparing", "busy", "done"]:
    """Lease the next task to an annotator; return the same one until they have decided.

    Return "preparing" while answers are still being sampled, and "busy" while other annotators hold all
    remaining tasks.
    """
    parameters = {"me": annotator, "now": time.time(), "target": target, "judge": HUMAN}
    with database.transaction() as connection:
        reviews = [] if mode == "rank" else connection.execute(_TO_REVIEW, parameters).fetchall()
        free_reviews = [row for row in reviews if row["own"] or not row["held"]]
        query = _TO_DO.format(decided="ranked" if mode == "rank" else "written")
        items = connection.execute(query, parameters).fetchall()
        free_items = [row for row in items if row["own"] or row["done"] + row["held"] < target]
        # Reviews come first, because an author is waiting for them. Only an item that this annotator holds,
        # as after an undo, comes before a review.
        if free_reviews and not (free_items and free_items[0]["own"]):
            task = _review(database, free_reviews[0], annotator)
        elif free_items:
            task = _item_task(database, mode, free_items[0]["item_id"], annotator)
        elif reviews or items:
            return "busy"
        else:
            return "preparing" if count_items(database).waiting else "done"
        lease(connection, annotator, task_name(task.item.item_id, task.about), lease_s)
    return task


def keep_lease(database: Database, annotator: str, lease_s: float = LEASE_S) -> None:
    """Extend the lease of an annotator who is still working."""
    with database.transaction() as connection:
        connection.execute(
            "UPDATE leases SET until = ? WHERE annotator = ?", (time.time() + lease_s, annotator)
        )


def progress(database: Database, mode: Mode, annotator: str, target: int) -> AnnotationProgress:
    """Count the judgments of this annotator and of all."""
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
    return AnnotationProgress(mine, done, items * target, counts.ready, items, reviews)


def _item_task(database: Database, mode: Mode, item_id: str, annotator: str) -> Task:
    item = find_item(database, item_id)
    assert item is not None, f"item {item_id} vanished within a transaction"
    before = _before(database, item_id, None, annotator)
    if mode == "write":
        return Task("write", item, returned=_returned(database, item_id), before=before)
    answers = answers_to(database, item_id)
    order = shown_order(annotator, item_id, len(answers))
    return Task("rank", item, tuple(answers[number] for number in order), before=before)


def _review(database: Database, row: sqlite3.Row, annotator: str) -> Task:
    item = find_item(database, row["item_id"])
    assert item is not None, f"item {row['item_id']} vanished within a transaction"
    before = _before(database, item.item_id, row["number"], annotator)
    return Task("review", item, about=row["number"], text=row["text"], before=before)


def _returned(database: Database, item_id: str) -> dict[str, str] | None:
    """Return the most recently rejected answer to this question, with the reason."""
    rows = database.rows(
        "SELECT standing.text, verdicts.reason FROM standing JOIN verdicts "
        "ON verdicts.about = standing.number WHERE standing.item_id = ? "
        "AND verdicts.decision = 'reject' ORDER BY verdicts.number DESC LIMIT 1",
        item_id,
    )
    return {"text": rows[0]["text"], "reason": rows[0]["reason"]} if rows else None


def _before(
    database: Database, item_id: str, about: int | None, annotator: str
) -> TakenBack | None:
    """Return this annotator's last decision on a task if they took it back."""
    rows = database.rows(
        "SELECT * FROM judgements WHERE item_id = ? AND about IS ? AND annotator = ? "  # words: keep
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
