"""What people (and synthetic judges) decided: recorded once, on disk at once, taken back but never deleted.

A submission carries a name that its sender made up, so that sending it again, after an answer that got
lost, changes nothing.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from raymill.annotate.database import Database
from raymill.annotate.items import Item, answers_of, find_item, shown_order
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
    """What someone sent can't be recorded; the message is for them."""


@dataclass(frozen=True)
class Submission:
    """A decision as it was sent.

    `ranks[i]`: of the answer shown as number i, 1 is the best, equal is a tie. `text`: an answer that the
    annotator wrote; in a ranking it is better than all that were shown. `about`: the writing that is
    reviewed.
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


def annotator_name(database: Database, given: str) -> str:
    """The spelling under which someone is known: the first one they used, whatever the case since.

    Raises:
        RefusalError: it isn't a name.
    """
    name = " ".join(unicodedata.normalize("NFC", given).split())
    # Letters with their marks: many scripts can't be written without.
    usable = all(sign in "._- " or unicodedata.category(sign)[0] in "LMN" for sign in name)
    if not usable or not 1 <= len(name) <= _NAME_CHARACTERS:
        raise RefusalError(f"A name consists of {NAME_RULE}.")
    key = name.casefold()
    with database.act() as connection:
        connection.execute("INSERT OR IGNORE INTO annotators VALUES (?, ?)", (key, name))
        [row] = connection.execute("SELECT name FROM annotators WHERE key = ?", (key,))
    return str(row["name"])


def record(database: Database, submission: Submission) -> bool:
    """Record a decision; False if it is there already.

    Raises:
        RefusalError: the item isn't asked, the annotator has decided on it, or the decision makes no sense.
    """
    with database.act() as connection:
        sent = connection.execute(
            "SELECT item_id, annotator FROM judgements WHERE judgement_id = ?",
            (submission.judgement_id,),
        ).fetchone()
        if sent is not None:
            if tuple(sent) != (submission.item_id, submission.annotator):
                raise RefusalError("This was sent already, for something else; load the page anew.")
            return False
        item = find_item(database, submission.item_id)
        if item is None:
            raise RefusalError("This isn't asked any more.")
        if submission.decision not in DECISIONS[submission.kind]:
            known = ", ".join(DECISIONS[submission.kind])
            raise RefusalError(f"Expected one of {known}, got {submission.decision!r}.")
        shown, ranks, decision = "[]", None, submission.decision
        if submission.kind == "rank":
            shown, ranks = _judged_answers(database, submission, item)
            if ranks is not None:
                decision = "tie" if len(set(ranks)) == 1 else "ranked"
        elif submission.kind == "write":
            _check_writing(connection, submission, item)
        else:
            _check_review(connection, submission, item)
        connection.execute(
            "INSERT INTO judgements (judgement_id, item_id, kind, about, annotator, judge, time, "
            "decision, shown, ranks, text, reason, seconds) "
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


def _judged_answers(
    database: Database, submission: Submission, item: Item
) -> tuple[str, list[int] | None]:
    """What was shown, in that order, and its ranks without gaps."""
    answers = answers_of(database, item.item_id)
    order = shown_order(submission.annotator, item.item_id, len(answers))
    given, judged = submission.ranks, submission.decision in ("ranked", "tie")
    if judged != (given is not None) or (
        given is not None
        and (len(given) != len(order) or not all(1 <= rank <= len(order) for rank in given))
    ):
        raise RefusalError(
            f"Expected {len(order)} ranks from 1 to {len(order)} where answers are ranked, and none "
            f"elsewhere; got {given} with {submission.decision!r}."
        )
    if submission.text is not None:
        if submission.decision == "skip":
            raise RefusalError("Who skips a question can't write an answer to it.")
        _check_text(item, submission.text)
        if submission.text.strip() in {answer.text.strip() for answer in answers}:
            raise RefusalError("Your version is one of the answers shown; change it, or remove it.")
    if database.rows(
        "SELECT 1 FROM ranked WHERE item_id = ? AND annotator = ?",
        item.item_id,
        submission.annotator,
    ):
        raise RefusalError("You have judged this already.")
    shown = canonical_json([{"place": place, **answers[place].evidence} for place in order])
    if given is None:
        return shown, None
    levels = sorted(set(given))
    return shown, [levels.index(rank) + 1 for rank in given]


def _check_writing(connection: sqlite3.Connection, submission: Submission, item: Item) -> None:
    if submission.decision == "write":
        _check_text(item, submission.text or "")
    elif submission.text is not None:
        raise RefusalError("Who skips a question can't write an answer to it.")
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
        raise RefusalError("Its author has taken this answer back.")
    if writing["annotator"] == submission.annotator:
        raise RefusalError("An answer is reviewed by somebody else than its author.")
    if connection.execute(
        "SELECT 1 FROM standing WHERE about = ? AND (decision != 'skip' OR annotator = ?)",
        (submission.about, submission.annotator),
    ).fetchone():
        raise RefusalError("This has been reviewed already.")
    if (submission.decision == "edit") != (submission.text is not None):
        raise RefusalError("An edited answer, and only that, comes with its text.")
    if submission.text is not None:
        _check_text(item, submission.text)
    if submission.decision == "reject" and not (submission.reason or "").strip():
        raise RefusalError("Say why it is rejected: its author will read it.")


def _check_text(item: Item, text: str) -> None:
    answered = [*item.messages, {"role": "assistant", "content": text}]
    found = read_conversation({"messages": answered}, "messages")
    if isinstance(found, Problem):
        raise RefusalError(f"This can't be used as an answer: {found.why}.")


def undo(database: Database, annotator: str, request_id: str, lease_s: float) -> str:
    """Take back someone's last decision and give them its item again; returns the item's name.

    The same request again changes nothing.

    Raises:
        RefusalError: there is nothing to take back, or others have built on it.
    """
    with database.act() as connection:
        done = connection.execute(
            "SELECT item_id FROM judgements WHERE undone_by = ? AND annotator = ?",
            (request_id, annotator),
        ).fetchone()
        if done is not None:
            return str(done["item_id"])
        last = connection.execute(
            "SELECT * FROM standing WHERE annotator = ? AND judge = ? AND item_id IN "
            "(SELECT item_id FROM items WHERE active) ORDER BY number DESC LIMIT 1",
            (annotator, HUMAN),
        ).fetchone()
        if last is None:
            raise RefusalError("There is nothing to take back.")
        if connection.execute(
            "SELECT 1 FROM verdicts WHERE about = ?", (last["number"],)
        ).fetchone():
            raise RefusalError(
                "Your last answer has been reviewed: it can't be taken back any more."
            )
        if connection.execute(
            "SELECT 1 FROM standing AS later JOIN standing AS rejected ON rejected.number = ? "
            "WHERE later.item_id = ? AND later.annotator = rejected.annotator "
            "AND later.about IS NULL AND later.number > ?",
            (last["about"], last["item_id"], last["number"]),
        ).fetchone():
            raise RefusalError(
                "Its author has written anew since: your review can't be taken back any more."
            )
        connection.execute(
            "UPDATE judgements SET undone = ?, undone_by = ? WHERE number = ?",
            (_now(), request_id, last["number"]),
        )
        lease(connection, annotator, task_name(last["item_id"], last["about"]), lease_s)
    return str(last["item_id"])


def task_name(item_id: str, about: int | None = None) -> str:
    """What is leased: an item, or the review of one writing."""
    return item_id if about is None else f"{item_id}/{about}"


def lease(connection: sqlite3.Connection, annotator: str, task: str, lease_s: float) -> None:
    """Keep others from a task for some seconds, and give up any other."""
    connection.execute(
        "INSERT OR REPLACE INTO leases VALUES (?, ?, ?)",
        (annotator, task, datetime.now(UTC).timestamp() + lease_s),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
