"""Exported datasets: ranks in the order of sampling, and a lineage file that names every origin."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from annotate.site_factory import SECRET_MODEL, ask, asked
from raymill.annotate.decisions import Submission, record, undo
from raymill.annotate.export import export_conversations, export_preferences
from raymill.annotate.items import answers_to, shown_order
from raymill.annotate.ranking_rules import rank_with_rule, resolve_rule
from raymill.data.messages.conversation import Conversation, read_conversation
from raymill.data.preference.comparison import Comparison, read_comparison
from raymill.errors import DataError

COLUMNS = [
    "prompt", "answers", "ranks", "annotator", "prompt_id", "judgement_id", "models", "judge", "time",
]  # fmt: skip


def ranking(
    item: str, decision: str, ranks: tuple[int, ...] | None, text: str | None = None
) -> Submission:
    return Submission(f"judgement-{item}", item, "Ada", "rank", decision, 1.0, ranks, text)


def test_rankings_are_read_back_as_they_were_meant(tmp_path: Path) -> None:
    database, items = asked(tmp_path, 7, answers=3)
    names = [item.item_id for item in items]
    for name in names[:2]:  # Ada likes the second that was made, wherever it stands
        order = shown_order("Ada", name, 3)
        ranks = tuple(1 if place == 1 else 2 for place in order)
        record(database, ranking(name, "ranked", ranks))
    record(database, ranking(names[2], "tie", (1, 1, 1)))
    record(database, ranking(names[3], "bad", None))
    record(database, ranking(names[4], "bad", None, "A better one."))
    record(database, ranking(names[5], "skip", None))
    record(database, ranking(names[6], "ranked", (1, 2, 3)))
    undo(database, "Ada", "request-1", 60)
    path = export_preferences(database, tmp_path)
    table = pq.read_table(path)
    assert path == tmp_path / "preferences.parquet" and table.column_names == COLUMNS
    rows = table.to_pylist()
    assert [row["prompt_id"] for row in rows] == ["prompt 0", "prompt 1", "prompt 2", "prompt 4"]
    for row, name in zip(rows, [*names[:3], names[4]], strict=True):
        texts = [answer.text for answer in answers_to(database, name)]
        assert row["answers"][:3] == texts
        assert row["models"][:3] == [SECRET_MODEL] * 3
        assert row["annotator"] == "Ada" and row["judge"] == "human"
    assert [row["ranks"] for row in rows[:2]] == [[2, 1, 2]] * 2
    assert rows[2]["ranks"] == [1, 1, 1]
    assert rows[3]["answers"][3] == "A better one." and rows[3]["models"][3] == "human"
    assert rows[3]["ranks"] == [2, 2, 2, 1]
    # As the preparation of preferences reads them.
    found = [read_comparison(row, "rankings") for row in rows]
    assert all(isinstance(one, Comparison) for one in found)
    pairs = [[(pair.better, pair.worse) for pair in one.pairs] for one in found]  # type: ignore[union-attr]
    assert pairs == [[(1, 0), (1, 2)], [(1, 0), (1, 2)], [], [(3, 0), (3, 1), (3, 2)]]
    assert len(found[2].ties) == 3  # type: ignore[union-attr]


def test_lineage_says_whose_and_how_many(tmp_path: Path) -> None:
    database, items = asked(tmp_path, 4, models=("model a", "model b"))
    names = [item.item_id for item in items]
    record(database, ranking(names[0], "ranked", (1, 2)))
    record(database, ranking(names[1], "ranked", (2, 1)))
    record(database, ranking(names[2], "bad", None))
    rank_with_rule(database, resolve_rule("length", 0, 1))
    path = export_preferences(database, tmp_path)
    lineage = json.loads(path.with_suffix(".json").read_text())
    assert lineage["file"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert lineage["file"]["rows"] == 6
    assert lineage["judges"] == {"human": 3, "synthetic:length": 4}
    assert lineage["counts"]["rank/bad"] == 1 and lineage["counts"]["undone"] == 0
    assert sum(lineage["counts"].values()) == 7
    assert [one["model"] for one in lineage["models"]] == ["model a", "model b"]
    assert [one["digest"] for one in lineage["models"]] == [
        "digest of model a", "digest of model b",
    ]  # fmt: skip
    assert sum(one["answers_judged"] for one in lineage["models"]) == 14
    assert lineage["settings"] == [{"temperature": 0.7}]
    assert lineage["database"]["judgements"] == 7 and len(lineage["database"]["sha256"]) == 64
    assert lineage["software"]["raymill"]
    judges = {row["judge"] for row in pq.read_table(path).to_pylist()}
    assert judges == {"human", "synthetic:length"}


def test_a_liking_for_a_position_shows(tmp_path: Path) -> None:
    database, items = asked(tmp_path, 5)
    for item in items[:4]:
        record(database, ranking(item.item_id, "ranked", (1, 2)))
    record(database, ranking(items[4].item_id, "tie", (1, 1)))
    path = export_preferences(database, tmp_path)
    lineage = json.loads(path.with_suffix(".json").read_text())
    assert lineage["first_shown_preferred"] == {"preferred": 4, "of": 4}


def test_the_same_judgments_give_the_same_bytes(tmp_path: Path) -> None:
    database, items = asked(tmp_path, 3)
    record(database, ranking(items[0].item_id, "ranked", (1, 2)))
    path = export_preferences(database, tmp_path)
    lineage = path.with_suffix(".json")
    first = path.read_bytes(), lineage.read_bytes()
    export_preferences(database, tmp_path)
    assert (path.read_bytes(), lineage.read_bytes()) == first
    record(database, ranking(items[1].item_id, "ranked", (1, 2)))
    export_preferences(database, tmp_path)
    assert pq.read_table(path).num_rows == 2 and lineage.read_bytes() != first[1]
    assert not [*tmp_path.glob("*.tmp-*")]


def test_a_damaged_answer_is_not_exported(tmp_path: Path) -> None:
    database, items = asked(tmp_path, 1)
    record(database, ranking(items[0].item_id, "ranked", (1, 2)))
    with database.transaction() as connection:
        connection.execute("UPDATE answers SET text = 'something else' WHERE place = 1")
    with pytest.raises(DataError, match="has another text"):
        export_preferences(database, tmp_path)


def test_nothing_is_exported_of_nothing(tmp_path: Path) -> None:
    database, _ = asked(tmp_path, 1)
    for export in (export_preferences, export_conversations):
        with pytest.raises(DataError, match="nothing to export"):
            export(database, tmp_path)
    assert not [*tmp_path.glob("*.parquet")]


def test_accepted_answers_become_conversations(tmp_path: Path) -> None:
    database, items = ask(tmp_path, [f"Question {n}?" for n in range(5)], "write")
    decisions = ["accept", "edit", "reject", "skip"]
    for number, item in enumerate(items):
        text = f"Answer {number}"
        record(
            database,
            Submission(f"writing-{number}", item.item_id, "Ada", "write", "write", 1.0, text=text),
        )
    numbers = [row["number"] for row in database.rows("SELECT number FROM judgements")]
    for item, about, decision in zip(items, numbers, decisions, strict=False):
        given = {
            "edit": {"text": "Answer 1, mended"}, "reject": {"reason": "wrong"},
        }.get(decision, {})  # fmt: skip
        record(
            database,
            Submission(
                f"review-{about}",
                item.item_id,
                "Bob",
                "review",
                decision,
                1.0,
                about=about,
                **given,
            ),
        )
    path = export_conversations(database, tmp_path)
    rows = pq.read_table(path).to_pylist()
    assert [row["messages"] for row in rows] == [
        [{"role": "user", "content": "Question 0?"}, {"role": "assistant", "content": "Answer 0"}],
        [
            {"role": "user", "content": "Question 1?"},
            {"role": "assistant", "content": "Answer 1, mended"},
        ],
    ]
    assert all(row["annotator"] == "Ada" and row["reviewer"] == "Bob" for row in rows)
    assert all(isinstance(read_conversation(row), Conversation) for row in rows)
    lineage = json.loads(path.with_suffix(".json").read_text())
    assert lineage["kind"] == "conversations" and lineage["file"]["rows"] == 2
    assert lineage["counts"]["review/reject"] == 1 and lineage["counts"]["write/write"] == 5
