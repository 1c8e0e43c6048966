"""Judgements as data sets: rankings for `kind=preference`, accepted answers for `kind=chat`.

A file is written whole or not at all, and the same judgements give the same bytes. Beside it lies its
lineage: whose answers they were, who judged, and what was left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymill import __version__
from raymill.annotate.database import Database
from raymill.annotate.judgements import HUMAN
from raymill.config.compose import PREFERENCES
from raymill.durable import (
    atomic_replacement,
    canonical_json,
    sha256_file,
    sha256_json,
    sha256_text,
    write_atomic,
)
from raymill.errors import DataError
from raymill.track.lineage import code_commit

CONVERSATIONS = "conversations.parquet"
FORMAT_VERSION = 1

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PREFERENCES = pa.schema(
    [
        ("prompt", _MESSAGES),
        ("answers", pa.list_(pa.string())),
        ("ranks", pa.list_(pa.int64())),
        ("annotator", pa.string()),
        ("prompt_id", pa.string()),
        ("judgement_id", pa.string()),
        ("models", pa.list_(pa.string())),
        ("judge", pa.string()),
        ("time", pa.string()),
    ]
)
_CONVERSATIONS = pa.schema(
    [
        ("messages", _MESSAGES),
        ("annotator", pa.string()),
        ("reviewer", pa.string()),
        ("prompt_id", pa.string()),
        ("judgement_id", pa.string()),
        ("time", pa.string()),
    ]
)


def export_preferences(database: Database, folder: Path) -> Path:
    """Write `preferences.parquet`, in the format `rankings`, and its lineage; returns its path.

    Answers stand in the order in which they were made, one that the annotator wrote last. A tie has equal
    ranks. "Both bad" says nothing of which is better, unless a better one was written; skipped questions
    say nothing at all. Both are counted in the lineage.

    Raises:
        DataError: nobody has judged anything.
    """
    with database.act():  # all of one moment
        judged = database.rows("SELECT * FROM judgements WHERE kind = 'rank' ORDER BY number")
        items = _items(database)
        answers = database.rows("SELECT item_id, place, text FROM answers")
    texts = {(row["item_id"], row["place"]): row["text"] for row in answers}
    rows = [
        _preference(row, *items[row["item_id"]], texts)
        for row in judged
        if row["undone"] is None and (row["ranks"] is not None or row["text"] is not None)
    ]
    path = _write(rows, _PREFERENCES, folder / PREFERENCES, database)
    standing = [row for row in judged if row["undone"] is None]
    shown = [answer for row in standing for answer in json.loads(row["shown"])]
    facts = {
        "models": _models(shown),
        "settings": [json.loads(text) for text in sorted({_settings(one) for one in shown})],
        "judges": dict(sorted(Counter(row["judge"] for row in standing).items())),
        "annotators": dict(sorted(Counter(row["annotator"] for row in standing).items())),
        "first_shown_preferred": _first_shown(standing),
        "left_out_items": _left_out(database),
    }
    _write_lineage(path, "preferences", len(rows), judged, facts)
    return path


def export_conversations(database: Database, folder: Path) -> Path:
    """Write `conversations.parquet`, accepted answers as chats, and its lineage; returns its path.

    Raises:
        DataError: no answer has been accepted.
    """
    with database.act():  # all of one moment
        written = database.rows(
            "SELECT * FROM judgements WHERE kind IN ('write', 'review') ORDER BY number"
        )
        accepted = database.rows(
            "SELECT writing.item_id, writing.judgement_id, writing.annotator AS author, "
            "ifnull(verdicts.text, writing.text) AS answer, verdicts.annotator AS reviewer, "
            "verdicts.time FROM standing AS writing JOIN verdicts ON verdicts.about = writing.number "
            "WHERE verdicts.decision IN ('accept', 'edit') ORDER BY verdicts.number"
        )
        items = _items(database)
    rows = []
    for row in accepted:
        prompt_id, messages = items[row["item_id"]]
        rows.append(
            {
                "messages": [*messages, {"role": "assistant", "content": row["answer"]}],
                "annotator": row["author"],
                "reviewer": row["reviewer"],
                "prompt_id": prompt_id,
                "judgement_id": row["judgement_id"],
                "time": row["time"],
            }
        )
    path = _write(rows, _CONVERSATIONS, folder / CONVERSATIONS, database)
    people = Counter(row["annotator"] for row in written if row["undone"] is None)
    _write_lineage(
        path, "conversations", len(rows), written, {"annotators": dict(sorted(people.items()))}
    )
    return path


def _preference(
    row: Any, prompt_id: str, messages: Sequence[Any], texts: dict[tuple[str, int], str]
) -> dict[str, Any]:
    shown = json.loads(row["shown"])
    ranks = json.loads(row["ranks"]) if row["ranks"] else [1] * len(shown)
    judged = sorted(zip(shown, ranks, strict=True), key=lambda pair: pair[0]["place"])
    answers = [texts[row["item_id"], answer["place"]] for answer, _ in judged]
    for text, (answer, _) in zip(answers, judged, strict=True):
        if sha256_text(text) != answer["sha256"]:
            raise DataError(
                f"Judgement {row['judgement_id']} is about an answer with sha256 {answer['sha256']}, "
                "but another text is stored; restore the database from a copy."
            )
    models = [answer["model"] for answer, _ in judged]
    ranks = [rank for _, rank in judged]
    if row["text"] is not None:
        answers, models = [*answers, row["text"]], [*models, HUMAN]
        ranks = [*(rank + 1 for rank in ranks), 1]
    return {
        "prompt": messages,
        "answers": answers,
        "ranks": ranks,
        "annotator": row["annotator"],
        "prompt_id": prompt_id,
        "judgement_id": row["judgement_id"],
        "models": models,
        "judge": row["judge"],
        "time": row["time"],
    }


def _items(database: Database) -> dict[str, tuple[str, list[dict[str, str]]]]:
    """Item → the prompt's name and its messages, those of earlier configurations too."""
    return {
        row["item_id"]: (row["prompt_id"], json.loads(row["messages"]))
        for row in database.rows("SELECT item_id, prompt_id, messages FROM items")
    }


def _models(shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    counted = Counter((answer["model"], answer["model_digest"]) for answer in shown)
    return [
        {"model": model, "digest": digest, "answers_judged": count}
        for (model, digest), count in sorted(counted.items())
    ]


def _settings(answer: dict[str, Any]) -> str:
    return canonical_json(answer["settings"])


def _first_shown(standing: Sequence[Any]) -> dict[str, int]:
    """How often the first answer shown was the best, of the rankings with one best: far from an equal
    share, people preferred a position."""
    ranked = [json.loads(row["ranks"]) for row in standing if row["ranks"]]
    decided = [ranks for ranks in ranked if ranks.count(1) == 1]
    return {"preferred": sum(ranks[0] == 1 for ranks in decided), "of": len(decided)}


def _left_out(database: Database) -> dict[str, int]:
    return {
        row["unusable"]: row["items"]
        for row in database.rows(
            "SELECT unusable, count(*) AS items FROM items WHERE unusable IS NOT NULL "
            "GROUP BY unusable ORDER BY unusable"
        )
    }


def _write(rows: list[dict[str, Any]], schema: pa.Schema, path: Path, database: Database) -> Path:
    if not rows:
        raise DataError(
            f"{database.path} holds nothing to export yet: nobody has decided anything."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replacement(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema), temporary, compression="zstd")
    return path


def _write_lineage(
    path: Path, kind: str, rows: int, judgements: Sequence[Any], facts: dict[str, Any]
) -> None:
    standing = [row for row in judgements if row["undone"] is None]
    lineage = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "file": {"name": path.name, "rows": rows, "sha256": sha256_file(path)},
        # Of what the database holds, not of its file, which differs by how it was written.
        "database": {"judgements": len(judgements), "sha256": sha256_json([*_plain(judgements)])},
        "counts": {
            **dict(sorted(Counter(f"{row['kind']}/{row['decision']}" for row in standing).items())),
            "undone": len(judgements) - len(standing),
        },
        **facts,
        "software": {"raymill": __version__, "code": code_commit()},
    }
    text = json.dumps(lineage, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path.with_suffix(".json"), text)


def _plain(judgements: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for row in judgements:
        yield {name: row[name] for name in row.keys()}  # noqa: SIM118  (a Row iterates over values)
