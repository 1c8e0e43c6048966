"""Decisions of people and of ranking rules: stored once, durable at once, revocable but never deleted.

A submission carries an id made by its sender, so a retry after a lost response changes nothing.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from raymill.annotate.database import Database
from raymill.annotate.items import Item, answers_to, find_item, shown_order
from raymill.data.messages.conversation import read_conversation
from raymill.data.messages.problems import Problem
from raymill.durable import canonical_json
from raymill.errors import RaymillError

HUMAN = "human"
SYNTHETIC = "synthetic:"
DECISIONS = {
    "rank": ("ranked", "tie", "bad", "skip"),
    "write": ("write", "skip"),
    "review": ("accept", "edit", "reject", "skip"),
}
NAME_RULE = "letters, digits, '.', '_', '-' and spaces, at most 64"

_NAME_CHARACTERS = 64


class RefusalError(RaymillError):
    """A submission can't be recorded; the message is meant for its sender."""


@dataclass(frozen=True)
class Submission:
    """A decision as the sender submitted it.

    `ranks[i]`: the rank of the answer shown at index i, 1 for the best, equal for ties. `text`: an answer
    written by the annotator; in a ranking it counts as better than all shown answers. `about`: the number
    of the written answer under review. `order`: numbers of the answers in the order in which they were shown,
    where that isn't `shown_order`.
    """

    judgement_id: str
    item_id: str
    annotator: str
    kind: Literal["rank", "write", "review"]
    decision: str
    seconds: float
    ranks: tuple[int, ...] | None = None
    text: str | None = None
    reason: str | None = None
    about: int | None = None
    judge: str = HUMAN
    order: tuple[int, ...] | None = None


def annotator_name(database: Database, name: str) -> str:
    """Return the first spelling under which this annotator is known, ignoring case.

    Raises:
        RefusalError: it isn't a valid name.
    """
    name = " ".join(unicodedata.normalize("NFC", name).split())
    # Combining marks (category M) are allowed because many scripts can't be written without them.
    usable = all(c in "._- " or unicodedata.category(c)[0] in "LMN" for c in name)
    if not usable or not 1 <= len(name) <= _NAME_CHARACTERS:
        raise RefusalError(f"A name consists of {NAME_RULE}.")
    key = name.casefold()
    with database.transaction() as connection:
        connection.execute("INSERT OR IGNORE INTO annotators VALUES (?, ?)", (key, name))
        [row] = connection.execute("SELECT name FROM annotators WHERE key = ?", (key,))
    return str(row["name"])


def record(database: Database, submission: Submission) -> bool:
    """Record a decision. Return False if the same submission is recorded already.

    Raises:
        RefusalError: the item isn't active, the annotator has decided on it before, or the decision is
            invalid.
    """
    with database.transaction() as connection:
        recorded = connection.execute(
            "SELECT item_id, annotator FROM judgements WHERE judgement_id = ?",  # words: keep
            (submission.judgement_id,),
        ).fetchone()
        # The page repeats a request whose response got lost.
        if recorded is not None:
            if tuple(recorded) != (submission.item_id, submission.annotator):
                raise RefusalError("This id belongs to another submission; reload the page.")
            return False
        item = find_item(database, submission.item_id)
        if item is None:
            raise RefusalError("This question is no longer active.")
        if submission.decision not in DECISIONS[submission.kind]:
            known = ", ".join(DECISIONS[submission.kind])
            raise RefusalError(f"Expected one of {known}, got {submission.decision!r}.")
        shown, ranks, decision = "[]", None, submission.decision
        if submission.kind == "rank":
            shown, ranks = _check_ranking(database, submission, item)
            if ranks is not None:
                # A single answer, ranked below the annotator's own, is no tie.
                decision = "tie" if len(set(ranks)) == 1 < len(ranks) else "ranked"
        elif submission.kind == "write":
            _check_writing(connection, submission, item)
        else:
            _check_review(connection, submission, item)
        connection.execute(
            "INSERT INTO judgements "  # words: keep
            "(judgement_id, item_id, kind, about, annotator, judge, time, decision, shown, ranks, text, "
            "reason, seconds) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                submission.judgement_id,
                submission.item_id,
                submission.kind,
                submission.about,
                submission.annotator,
                submission.judge,
                _now(),
                decision,
                shown,
                None if ranks is None else canonical_json(ranks),
                submission.text,
                submission.reason,
                submission.seconds,
            ),
        )
        connection.execute("DELETE FROM leases WHERE annotator = ?", (submission.annotator,))
    return True


def _check_ranking(
    database: Database, submission: Submission, item: Item
) -> tuple[str, list[int] | None]:
    """Return the shown answers' evidence as JSON and their ranks without gaps, or refuse the ranking."""
    answers = answers_to(database, item.item_id)
    order = submission.order or shown_order(submission.annotator, item.item_id, len(answers))
    if sorted(order) != [*range(len(answers))]:
        raise RefusalError(f"Expected an order of {len(answers)} answers, got {order}.")
    ranks, needs_ranks = submission.ranks, submission.decision in ("ranked", "tie")
    if needs_ranks != (ranks is not None) or (
        ranks is not None
        and (len(ranks) != len(order) or not all(1 <= rank <= len(order) for rank in ranks))
    ):
        raise RefusalError(
            f"Expected {len(order)} ranks from 1 to {len(order)} for a ranking, and none for any other "
            f"decision; got {ranks} with {submission.decision!r}."
        )
    if submission.text is not None:
        if submission.decision == "skip":
            raise RefusalError("A skipped question can't have a written answer.")
        _check_text(item, submission.text)
        # The annotator's version ranks above all shown answers, so it must not be one of them.
        if submission.text.strip() in {answer.text.strip() for answer in answers}:
            raise RefusalError("Your version equals one of the answers shown; change or remove it.")
    if database.rows(
        "SELECT 1 FROM ranked WHERE item_id = ? AND annotator = ?",
        item.item_id,
        submission.annotator,
    ):
        raise RefusalError("You have ranked this already.")
    shown = canonical_json([{"place": number, **answers[number].evidence} for number in order])
    if ranks is None:
        return shown, None
    # Renumbering makes equal preferences equal rows: (1, 3) and (1, 2) state the same.
    levels = sorted(set(ranks))
    return shown, [levels.index(rank) + 1 for rank in ranks]


def _check_writing(connection: sqlite3.Connection, submission: Submission, item: Item) -> None:
    if submission.decision == "write":
        _check_text(item, submission.text or "")
    elif submission.text is not None:
        raise RefusalError("A skipped question can't have a written answer.")
    if connection.execute(
        "SELECT 1 FROM written WHERE item_id = ? AND annotator = ?",
        (item.item_id, submission.annotator),
    ).fetchone():
        raise RefusalError("You have answered this already.")


def _check_review(connection: sqlite3.Connection, submission: Submission, item: Item) -> None:
    writing = connection.execute(
        "SELECT * FROM standing WHERE number = ? AND item_id = ? AND kind = 'write'",
        (submission.about, item.item_id),
    ).fetchone()
    if writing is None or writing["decision"] != "write":
        raise RefusalError("The author has taken this answer back.")
    if writing["annotator"] == submission.annotator:
        raise RefusalError("Authors can't review their own answers.")
    if connection.execute(
        "SELECT 1 FROM standing WHERE about = ? AND (decision != 'skip' OR annotator = ?)",
        (submission.about, submission.annotator),
    ).fetchone():
        raise RefusalError("This has been reviewed already.")
    if (submission.decision == "edit") != (submission.text is not None):
        raise RefusalError("An edit needs a text, and no other review may have one.")
    if submission.text is not None:
        _check_text(item, submission.text)
    if submission.decision == "reject" and not (submission.reason or "").strip():
        raise RefusalError("A rejection needs a reason: the author will read it.")


def _check_text(item: Item, text: str) -> None:
    messages = [*item.messages, {"role": "assistant", "content": text}]
    conversation = read_conversation({"messages": messages}, "messages")
    if isinstance(conversation, Problem):
        raise RefusalError(f"This can't be used as an answer: {conversation.why}.")


def undo(database: Database, annotator: str, request_id: str, lease_s: float) -> str:
    """Take back an annotator's last decision and lease its item to them again; return the item's id.

    A repeated request changes nothing.

    Raises:
        RefusalError: there is no decision to take back, or another person's work depends on it.
    """
    with database.transaction() as connection:
        done = connection.execute(
            "SELECT item_id FROM judgements WHERE undone_by = ? AND annotator = ?",  # words: keep
            (request_id, annotator),
        ).fetchone()
        # A repeated request must not take back a second decision.
        if done is not None:
            return str(done["item_id"])
        last = connection.execute(
            "SELECT * FROM standing WHERE annotator = ? AND judge = ? AND item_id IN "
            "(SELECT item_id FROM items WHERE active) ORDER BY number DESC LIMIT 1",
            (annotator, HUMAN),
        ).fetchone()
        if last is None:
            raise RefusalError("There is nothing to take back.")
        # Another person's work depends on a decision that was reviewed, or followed by a new answer.
        if connection.execute(
            "SELECT 1 FROM verdicts WHERE about = ?", (last["number"],)
        ).fetchone():
            raise RefusalError(
                "Your last answer has been reviewed: it can no longer be taken back."
            )
        if connection.execute(
            "SELECT 1 FROM standing AS later JOIN standing AS rejected ON rejected.number = ? "
            "WHERE later.item_id = ? AND later.annotator = rejected.annotator "
            "AND later.about IS NULL AND later.number > ?",
            (last["about"], last["item_id"], last["number"]),
        ).fetchone():
            raise RefusalError(
                "The author has written a new answer: your review can no longer be taken back."
            )
        connection.execute(
            "UPDATE judgements SET undone = ?, undone_by = ? WHERE number = ?",  # words: keep
            (_now(), request_id, last["number"]),
        )
        lease(connection, annotator, task_name(last["item_id"], last["about"]), lease_s)
    return str(last["item_id"])


def withdraw(database: Database, annotator: str, judgement_id: str) -> None:
    """Take back one ranking of an annotator, whichever they made since; a repeated request changes nothing.

    Raises:
        RefusalError: this annotator has made no such ranking.
    """
    with database.transaction() as connection:
        found = connection.execute(
            "SELECT undone FROM judgements WHERE judgement_id = ? AND annotator = ? "  # words: keep
            "AND kind = 'rank'",
            (judgement_id, annotator),
        ).fetchone()
        if found is None:
            raise RefusalError("There is nothing to take back.")
        connection.execute(
            "UPDATE judgements SET undone = ?, undone_by = ? "  # words: keep
            "WHERE judgement_id = ? AND undone IS NULL",
            (_now(), f"withdrawn {judgement_id}", judgement_id),
        )


def task_name(item_id: str, about: int | None = None) -> str:
    """Return the name under which a task is leased: an item, or the review of one written answer."""
    return item_id if about is None else f"{item_id}/{about}"


def lease(connection: sqlite3.Connection, annotator: str, task: str, lease_s: float) -> None:
    """Reserve a task for an annotator for some seconds; it replaces the annotator's earlier lease."""
    connection.execute(
        "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)",
        (annotator, task, datetime.now(UTC).timestamp() + lease_s),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
