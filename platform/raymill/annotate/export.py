"""Export of judgments as datasets: rankings for `kind=preference`, accepted answers for `kind=chat`.

Files are written atomically, and equal judgments give equal bytes. A lineage file next to each dataset
names the models, the annotators and the items left out.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from raymill import __version__
from raymill.annotate.database import Database
from raymill.annotate.decisions import HUMAN
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


class _ShownAnswer(TypedDict):
    """Evidence of one shown answer, as `SampledAnswer.evidence` and its number among the item's answers."""

    place: int
    sha256: str
    model: str
    model_digest: str
    settings: dict[str, object]


def export_preferences(database: Database, folder: Path) -> Path:
    """Write `preferences.parquet`, in the format `rankings`, and its lineage; return its path.

    Answers are in the order of sampling, with the annotator's own answer last. A tie has equal ranks.
    "Both bad" gives no preference unless the annotator wrote a better answer, and a skipped question gives
    none; the lineage counts both.

    Raises:
        DataError: no judgment gives a preference.
    """
    # One transaction gives a consistent snapshot while people keep working.
    with database.transaction():
        query = "SELECT * FROM judgements WHERE kind = 'rank' ORDER BY number"  # words: keep
        judged = database.rows(query)
        items = _items(database)
        answers = database.rows("SELECT item_id, place, text FROM answers")
    texts = {(row["item_id"], row["place"]): row["text"] for row in answers}
    rows = [
        _preference(row, *items[row["item_id"]], texts)
        for row in judged
        if row["undone"] is None and (row["ranks"] is not None or row["text"] is not None)
    ]
    path = _write(rows, _PREFERENCES, folder / PREFERENCES, database)
    # The lineage counts every judgment that stands, including those that give no preference.
    standing = [row for row in judged if row["undone"] is None]
    shown: list[_ShownAnswer] = [answer for row in standing for answer in json.loads(row["shown"])]
    facts = {
        "models": _models(shown),
        "settings": [
            json.loads(text) for text in sorted({canonical_json(a["settings"]) for a in shown})
        ],
        "judges": dict(sorted(Counter(row["judge"] for row in standing).items())),
        "annotators": dict(sorted(Counter(row["annotator"] for row in standing).items())),
        "first_shown_preferred": _first_shown(standing),
        "left_out_items": _left_out(database),
    }
    _write_lineage(path, "preferences", len(rows), judged, facts)
    return path


def export_conversations(database: Database, folder: Path) -> Path:
    """Write `conversations.parquet`, the accepted answers as chats, and its lineage; return its path.

    Raises:
        DataError: no answer has been accepted.
    """
    # One transaction gives a consistent snapshot while people keep working.
    with database.transaction():
        written = database.rows(
            "SELECT * FROM judgements WHERE kind IN ('write', 'review') ORDER BY number"  # words: keep
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
    row: sqlite3.Row,
    prompt_id: str,
    messages: Sequence[Mapping[str, str]],
    texts: Mapping[tuple[str, int], str],
) -> dict[str, object]:
    """Convert a judgment to a row of the dataset, with the answers back in the order of sampling."""
    shown: list[_ShownAnswer] = json.loads(row["shown"])
    ranks = json.loads(row["ranks"]) if row["ranks"] else [1] * len(shown)
    judged = sorted(zip(shown, ranks, strict=True), key=lambda pair: pair[0]["place"])
    answers = [texts[row["item_id"], answer["place"]] for answer, _ in judged]
    for text, (answer, _) in zip(answers, judged, strict=True):
        # Training on a text that nobody judged would be silent damage.
        if sha256_text(text) != answer["sha256"]:
            raise DataError(
                f"Judgment {row['judgement_id']} refers to an answer with sha256 {answer['sha256']}, "
                "but the database has another text; restore the database from a copy."
            )
    models = [answer["model"] for answer, _ in judged]
    ranks = [rank for _, rank in judged]
    if row["text"] is not None:
        # The annotator's own answer takes rank 1, and all others move down.
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
    """Map item ids to prompt ids and messages, including items of earlier configurations."""
    return {
        row["item_id"]: (row["prompt_id"], json.loads(row["messages"]))
        for row in database.rows("SELECT item_id, prompt_id, messages FROM items")
    }


def _models(shown: Sequence[_ShownAnswer]) -> list[dict[str, object]]:
    counted = Counter((answer["model"], answer["model_digest"]) for answer in shown)
    return [
        {"model": model, "digest": digest, "answers_judged": count}
        for (model, digest), count in sorted(counted.items())
    ]


def _first_shown(standing: Sequence[sqlite3.Row]) -> dict[str, int]:
    """Count the rankings with one best answer, and those whose best answer was shown first.

    A share far from 1 / answers reveals a position bias of the annotators.
    """
    ranked = [json.loads(row["ranks"]) for row in standing if row["ranks"]]
    decided = [ranks for ranks in ranked if ranks.count(1) == 1 < len(ranks)]
    return {"preferred": sum(ranks[0] == 1 for ranks in decided), "of": len(decided)}


def _left_out(database: Database) -> dict[str, int]:
    return {
        row["unusable"]: row["items"]
        for row in database.rows(
            "SELECT unusable, count(*) AS items FROM items WHERE unusable IS NOT NULL "
            "GROUP BY unusable ORDER BY unusable"
        )
    }


def _write(
    rows: list[dict[str, object]], schema: pa.Schema, path: Path, database: Database
) -> Path:
    if not rows:
        raise DataError(f"{database.path} holds nothing to export yet: no decision has been made.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replacement(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema), temporary, compression="zstd")
    return path


def _write_lineage(
    path: Path, kind: str, rows: int, judgments: Sequence[sqlite3.Row], facts: Mapping[str, object]
) -> None:
    standing = [row for row in judgments if row["undone"] is None]
    lineage = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "file": {"name": path.name, "rows": rows, "sha256": sha256_file(path)},
        # The digest covers the rows and not the file, whose bytes depend on the order of writes.
        "database": {"judgements": len(judgments), "sha256": sha256_json([*_plain(judgments)])},
        "counts": {
            **dict(sorted(Counter(f"{row['kind']}/{row['decision']}" for row in standing).items())),
            "undone": len(judgments) - len(standing),
        },
        **facts,
        "software": {"raymill": __version__, "code": code_commit()},
    }
    text = json.dumps(lineage, indent=1, ensure_ascii=False) + "\n"
    write_atomic(path.with_suffix(".json"), text)


def _plain(judgments: Sequence[sqlite3.Row]) -> Iterator[dict[str, str | int | float | None]]:
    for row in judgments:
        yield {name: row[name] for name in row.keys()}  # noqa: SIM118  (a Row iterates over values)
