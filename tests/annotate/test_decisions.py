"""Decisions: durable at once, counted once, kept after an undo, and assigned without duplicate work."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from annotate.site_factory import SECRET_MODEL, ask, asked
from raymill.annotate.database import DATABASE_NAME, Database
from raymill.annotate.decisions import RefusalError, Submission, annotator_name, record, undo
from raymill.annotate.items import answers_to, ready_items, shown_order
from raymill.annotate.tasks import Task, next_task, progress
from raymill.errors import DataError

_RANKING_SCRIPT = """
import sys
from pathlib import Path
from raymill.annotate.database import Database
from raymill.annotate.decisions import Submission, record
from raymill.annotate.tasks import next_task

database = Database(Path(sys.argv[1]))
for number in range(10_000):
    task = next_task(database, "rank", "Ada", target=1)
    name = f"judgement-{number}"
    record(database, Submission(name, task.item.item_id, "Ada", "rank", "ranked", 1.5, (1, 2)))
    print(name, flush=True)
"""


def rank(item: str, annotator: str = "Ada", number: int = 0, **changes: Any) -> Submission:
    given = {"decision": "ranked", "ranks": (1, 2), **changes}
    return Submission(
        f"{annotator}-{item}-{number}"[:64], item, annotator, "rank", seconds=2.5, **given
    )


def task_of(database: Database, annotator: str, target: int = 1, **given: Any) -> Task:
    found = next_task(database, "rank", annotator, target, **given)
    assert isinstance(found, Task), found
    return found


def rows(database: Database) -> list[sqlite3.Row]:
    return database.rows("SELECT * FROM judgements ORDER BY number")


def test_a_judgment_keeps_what_it_is_about(tmp_path: Path) -> None:
    database, [item] = asked(tmp_path, 1)
    assert record(database, rank(item.item_id))
    [row] = rows(database)
    assert row["annotator"] == "Ada" and row["judge"] == "human" and row["seconds"] == 2.5
    assert row["decision"] == "ranked" and json.loads(row["ranks"]) == [1, 2]
    assert row["time"].endswith("+00:00")
    answers = answers_to(database, item.item_id)
    shown = json.loads(row["shown"])
    order = shown_order("Ada", item.item_id, 2)
    assert [one["place"] for one in shown] == list(order)
    for one in shown:
        answer = answers[one["place"]]
        assert one["seed"] == answer.seed and one["model"] == SECRET_MODEL
        assert one["settings"] == {"temperature": 0.7} and one["finish"] == "stop"
        assert len(one["sha256"]) == 64 and one["model_digest"] == f"digest of {SECRET_MODEL}"


def test_every_acknowledged_judgment_survives_a_kill(tmp_path: Path) -> None:
    database, _ = asked(tmp_path, 400)
    database.close()
    command = [sys.executable, "-c", _RANKING_SCRIPT, str(tmp_path / DATABASE_NAME)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(25)]
    process.send_signal(signal.SIGKILL)
    acknowledged += process.stdout.read().split()
    process.wait()
    with Database(tmp_path / DATABASE_NAME) as survived:
        found = [row["judgement_id"] for row in rows(survived)]
        assert survived.rows("PRAGMA integrity_check")[0][0] == "ok"
        assert [*map(tuple, survived.rows("PRAGMA journal_mode"))] == [("wal",)]
        assert [*map(tuple, survived.rows("PRAGMA synchronous"))] == [(2,)]  # FULL
        # One may have been committed whose acknowledgement the kill cut off.
        assert found[: len(acknowledged)] == acknowledged
        assert len(found) - len(acknowledged) in (0, 1)
        assert task_of(survived, "Ada").item.item_id not in {
            row["item_id"] for row in rows(survived)
        }


def test_the_same_submission_counts_once(tmp_path: Path) -> None:
    database, [one, other] = asked(tmp_path, 2)
    assert record(database, rank(one.item_id))
    assert not record(database, rank(one.item_id))
    assert len(rows(database)) == 1
    stolen = Submission(f"Ada-{one.item_id}-0", other.item_id, "Ada", "rank", "skip", 1.0)
    with pytest.raises(RefusalError, match="belongs to another submission"):
        record(database, stolen)
    with pytest.raises(RefusalError, match="ranked this already"):
        record(database, rank(one.item_id, number=1))


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"ranks": (1,)}, "Expected 2 ranks"),
        ({"ranks": (0, 1)}, "Expected 2 ranks"),
        ({"ranks": (1, 3)}, "Expected 2 ranks"),
        ({"ranks": None}, "Expected 2 ranks"),
        ({"decision": "bad"}, "none"),
        ({"decision": "accept", "ranks": None}, "Expected one of"),
        ({"text": "  "}, "empty"),
        ({"text": "half \ud800 of a pair"}, "surrogate"),
        ({"decision": "skip", "ranks": None, "text": "better"}, "skipped question"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, given: Any, why: str) -> None:
    database, [item] = asked(tmp_path, 1)
    with pytest.raises(RefusalError, match=why):
        record(database, rank(item.item_id, **given))
    assert not rows(database)


def test_a_version_that_was_shown_is_no_better_one(tmp_path: Path) -> None:
    database, [item] = asked(tmp_path, 1)
    shown = answers_to(database, item.item_id)[1].text
    with pytest.raises(RefusalError, match="equals one of the answers shown"):
        record(database, rank(item.item_id, text=f"{shown}\n"))


def test_ranks_have_no_gaps_and_equal_ones_are_a_tie(tmp_path: Path) -> None:
    database, [one, other] = asked(tmp_path, 2, answers=3)
    record(database, rank(one.item_id, ranks=(3, 1, 3)))
    record(database, rank(other.item_id, ranks=(2, 2, 2)))
    found = [(row["decision"], json.loads(row["ranks"])) for row in rows(database)]
    assert found == [("ranked", [2, 1, 2]), ("tie", [1, 1, 1])]


def test_taking_back_marks_and_gives_the_same_item_again(tmp_path: Path) -> None:
    database, _ = asked(tmp_path, 3)
    first = task_of(database, "Ada")
    record(database, rank(first.item.item_id, text="A better one."))
    second = task_of(database, "Ada")
    record(database, rank(second.item.item_id, ranks=(2, 1)))
    assert undo(database, "Ada", "request-1", 60) == second.item.item_id
    assert undo(database, "Ada", "request-1", 60) == second.item.item_id  # sent again
    assert [row["undone"] is None for row in rows(database)] == [True, False]
    again = task_of(database, "Ada")
    assert again.item == second.item and again.before is not None
    assert again.before["ranks"] == [2, 1]
    assert undo(database, "Ada", "request-2", 60) == first.item.item_id
    before = task_of(database, "Ada").before
    assert before is not None and before["text"] == "A better one."
    with pytest.raises(RefusalError, match="nothing to take back"):
        undo(database, "Ada", "request-3", 60)
    record(database, rank(first.item.item_id, number=1))
    assert len(rows(database)) == 3 and progress(database, "rank", "Ada", 1).mine == 1


def test_only_ones_own_is_taken_back(tmp_path: Path) -> None:
    database, [item] = asked(tmp_path, 1)
    record(database, rank(item.item_id))
    with pytest.raises(RefusalError, match="nothing to take back"):
        undo(database, "Bob", "request", 60)


def test_what_someone_works_at_is_kept_from_others_for_a_while(tmp_path: Path) -> None:
    database, [one, other] = asked(tmp_path, 2)
    assert task_of(database, "Ada").item == one
    assert task_of(database, "Ada").item == one  # after a reload of the page
    assert task_of(database, "Bob", lease_s=0.05).item == other
    assert next_task(database, "rank", "Cyd", 1) != "done"
    time.sleep(0.06)
    assert task_of(database, "Cyd").item == other
    assert next_task(database, "rank", "Dan", 1) == "busy"
    # Bob was slow, but his decision counts.
    assert record(database, rank(other.item_id, "Bob"))
    assert record(database, rank(other.item_id, "Cyd"))
    assert record(database, rank(one.item_id, "Ada"))
    for annotator in ("Ada", "Bob", "Cyd", "Dan"):
        assert next_task(database, "rank", annotator, 1) == "done"
    found = progress(database, "rank", "Bob", 1)
    assert (found.mine, found.done, found.total) == (1, 2, 2)


def test_items_with_the_fewest_judgments_come_first(tmp_path: Path) -> None:
    database, [one, two, three] = asked(tmp_path, 3)
    record(database, rank(one.item_id, "Ada"))
    record(database, rank(two.item_id, "Ada"))
    record(database, rank(one.item_id, "Bob"))
    assert task_of(database, "Cyd", target=3).item == three
    record(database, rank(three.item_id, "Cyd"))
    assert task_of(database, "Cyd", target=3).item == two
    # A skipped question still needs its judgment, by somebody else.
    record(database, rank(two.item_id, "Cyd", decision="skip", ranks=None))
    assert task_of(database, "Cyd", target=3).item == one
    assert task_of(database, "Dan", target=2).item == two
    assert progress(database, "rank", "Dan", 2).done == 4


def test_annotators_at_once_never_judge_an_item_twice(tmp_path: Path) -> None:
    database, items = asked(tmp_path, 12)
    path = tmp_path / DATABASE_NAME

    def rank_all(name: str, own: Database) -> None:
        while isinstance(task := next_task(own, "rank", name, target=2), Task):
            record(own, rank(task.item.item_id, name))

    # Two share a connection, as the threads of a server do; two have their own, as processes do.
    connections = [database, database, Database(path), Database(path)]
    with ThreadPoolExecutor(4) as pool:
        done = [*map(partial(pool.submit, rank_all), ("Ada", "Bob", "Cyd", "Dan"), connections)]
    for future in done:
        future.result()
    pairs = Counter((row["item_id"], row["annotator"]) for row in rows(database))
    assert set(pairs.values()) == {1}
    by_item = Counter(item for item, _ in pairs)
    assert by_item == {item.item_id: 2 for item in items}


def test_a_persons_spelling_is_the_first_they_used(tmp_path: Path) -> None:
    database, _ = ask(tmp_path, ["?"])
    assert annotator_name(database, "  Zoë  van Dijk-2 ") == "Zoë van Dijk-2"
    assert annotator_name(database, "zoe\u0308 VAN dijk-2") == "Zoë van Dijk-2"
    assert annotator_name(database, "प्रिया") == "प्रिया"
    for given in ("", "   ", "a" * 65, "synthetic:length", "<b>", "a\nb;", "a/b"):
        with pytest.raises(RefusalError, match="A name consists of"):
            annotator_name(database, given)


def test_orders_are_those_of_a_pair_and_even_out() -> None:
    firsts = Counter(shown_order(f"person {n % 40}", f"item {n}", 3)[0] for n in range(3000))
    assert all(abs(firsts[place] - 1000) < 100 for place in range(3))  # 3.9 standard deviations
    assert shown_order("Ada", "item", 5) == shown_order("Ada", "item", 5)
    assert sorted(shown_order("Ada", "item", 5)) == [0, 1, 2, 3, 4]


def write(
    item: str, annotator: str, kind: Any = "write", decision: str = "write", **given: Any
) -> Submission:
    return Submission(
        f"{annotator}-{kind}-{decision}-{len(given)}", item, annotator, kind, decision, 9.0, **given
    )


def test_writing_is_reviewed_by_somebody_else(tmp_path: Path) -> None:
    database, [item] = ask(tmp_path, ["Why?"], "write")
    name = item.item_id
    task = next_task(database, "write", "Ada", 1)
    assert isinstance(task, Task) and task.kind == "write" and not task.answers
    record(database, write(name, "Ada", text="Because."))
    [writing] = rows(database)
    with pytest.raises(RefusalError, match="their own"):
        record(database, write(name, "Ada", "review", "accept", about=writing["number"]))
    assert next_task(database, "write", "Ada", 1) == "done"
    review = next_task(database, "write", "Bob", 1)
    assert isinstance(review, Task) and review.kind == "review" and review.text == "Because."
    assert next_task(database, "write", "Cyd", 1) == "busy"
    about = review.about
    with pytest.raises(RefusalError, match="needs a reason"):
        record(database, write(name, "Bob", "review", "reject", about=about))
    record(database, write(name, "Bob", "review", "reject", about=about, reason="Why not?"))
    with pytest.raises(RefusalError, match="reviewed already"):
        record(database, write(name, "Cyd", "review", "accept", about=about))
    with pytest.raises(RefusalError, match="reviewed"):
        undo(database, "Ada", "request", 60)
    # Its author learns why, and may try again.
    task = next_task(database, "write", "Ada", 1)
    assert isinstance(task, Task)
    assert task.returned == {"text": "Because.", "reason": "Why not?"}
    second = Submission("Ada-second", name, "Ada", "write", "write", 9.0, text="It is so.")
    record(database, second)
    review = next_task(database, "write", "Bob", 1)
    assert isinstance(review, Task) and review.text == "It is so."
    edited = {"about": review.about, "text": "It is so, because."}
    # Bob can't undo the review on which the second answer depends.
    with pytest.raises(RefusalError, match="has written a new answer"):
        undo(database, "Bob", "too late", 60)
    record(database, Submission("Bob-second", name, "Bob", "review", "edit", 9.0, **edited))
    found = progress(database, "write", "Ada", 1)
    assert (found.done, found.total, found.reviews, found.mine) == (1, 1, 0, 2)


def test_a_review_taken_back_comes_again(tmp_path: Path) -> None:
    database, [item] = ask(tmp_path, ["Why?"], "write")
    record(database, write(item.item_id, "Ada", text="Because."))
    about = rows(database)[0]["number"]
    record(database, write(item.item_id, "Bob", "review", "accept", about=about))
    assert next_task(database, "write", "Bob", 1) == "done"
    undo(database, "Bob", "request", 60)
    review = next_task(database, "write", "Bob", 1)
    assert isinstance(review, Task) and review.before is not None
    assert review.before["decision"] == "accept"
    # Now the author can take the answer back too, and a reviewer who comes too late is refused.
    undo(database, "Ada", "another request", 60)
    with pytest.raises(RefusalError, match="taken this answer back"):
        record(database, write(item.item_id, "Bob", "review", "skip", about=about))


def test_other_questions_leave_earlier_judgments_alone(tmp_path: Path) -> None:
    database, [item] = asked(tmp_path, 1)
    record(database, rank(item.item_id))
    database.close()
    database, [other] = asked(tmp_path, ["Something else?"])
    assert [one.item_id for one in ready_items(database)] == [other.item_id]
    with pytest.raises(RefusalError, match="no longer active"):
        record(database, rank(item.item_id, "Bob"))
    assert len(rows(database)) == 1


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / DATABASE_NAME
    path.write_text("This is no database, though it is long enough to be taken for one.\n" * 20)
    with pytest.raises(DataError, match="can't be opened"):
        Database(path)
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(DataError, match="format version 99"):
        Database(path)
