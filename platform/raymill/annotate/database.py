"""The SQLite file of a ranking: whatever a person decided is on the disk before they are told so.

WAL with synchronous=FULL: a commit is flushed before it returns, so a killed process or a power cut loses
nothing that was acknowledged, and exports may read while people judge.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from raymill.errors import DataError

DATABASE_NAME = "judgements.sqlite"
FORMAT_VERSION = 1
_BUSY_S = 30.0

# `active`: asked by the configuration of the last start. `unusable`: why there is nothing to compare.
# A judgement of kind review is about the judgement of kind write with the number `about`.
# `shown`: the answers' digests, models, seeds and settings in the order in which they were shown; `ranks`
# and everything else that numbers answers is in that order. Undone ones stay.
_SCHEMA = """
CREATE TABLE items (
    item_id TEXT PRIMARY KEY, place INTEGER NOT NULL, active INTEGER NOT NULL, mode TEXT NOT NULL,
    prompt_id TEXT NOT NULL, messages TEXT NOT NULL, reference TEXT,
    ready INTEGER NOT NULL, unusable TEXT
) STRICT;
CREATE TABLE answers (
    item_id TEXT NOT NULL REFERENCES items, place INTEGER NOT NULL, sha256 TEXT NOT NULL,
    text TEXT NOT NULL, ids TEXT NOT NULL, finish TEXT NOT NULL, model TEXT NOT NULL,
    model_digest TEXT NOT NULL, seed INTEGER NOT NULL, settings TEXT NOT NULL,
    PRIMARY KEY (item_id, place)
) STRICT;
CREATE TABLE annotators (key TEXT PRIMARY KEY, name TEXT NOT NULL) STRICT;
CREATE TABLE leases (annotator TEXT PRIMARY KEY, task TEXT NOT NULL, until REAL NOT NULL) STRICT;
CREATE TABLE judgements (
    number INTEGER PRIMARY KEY AUTOINCREMENT, judgement_id TEXT NOT NULL UNIQUE,
    item_id TEXT NOT NULL REFERENCES items, kind TEXT NOT NULL,
    about INTEGER REFERENCES judgements, annotator TEXT NOT NULL, judge TEXT NOT NULL,
    time TEXT NOT NULL, decision TEXT NOT NULL, shown TEXT NOT NULL, ranks TEXT, text TEXT,
    reason TEXT, seconds REAL NOT NULL, undone TEXT, undone_by TEXT UNIQUE
) STRICT;
CREATE INDEX judgements_of_item ON judgements (item_id, annotator);
CREATE INDEX judgements_about ON judgements (about);
CREATE VIEW standing AS SELECT * FROM judgements WHERE undone IS NULL;
CREATE VIEW verdicts AS SELECT * FROM standing WHERE kind = 'review' AND decision != 'skip';
CREATE VIEW ranked AS SELECT * FROM standing WHERE kind = 'rank';
CREATE VIEW written AS SELECT * FROM standing WHERE kind = 'write'
    AND number NOT IN (SELECT about FROM verdicts WHERE decision = 'reject');
"""


class Database:
    """One connection that threads share; other processes may have theirs.

    Raises:
        DataError: the file isn't a database of this format, or can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            # Transactions are begun and ended here, not by the driver.
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
            self._ensure_schema()
        except sqlite3.Error as error:
            raise DataError(
                f"{path} can't be opened as a database of judgements ({error}); restore it, or choose "
                "another name=."
            ) from error

    def _ensure_schema(self) -> None:
        with self.act() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in _SCHEMA.strip().split(";\n"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            elif version != FORMAT_VERSION:
                raise DataError(
                    f"{self.path} has format version {version}, this Raymill reads {FORMAT_VERSION}; "
                    "export it with the version that wrote it, or choose another name=."
                )

    @contextmanager
    def act(self) -> Iterator[sqlite3.Connection]:
        """One transaction, alone among all writers; on disk when the block ends, or not at all."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def rows(self, query: str, *parameters: Any) -> list[sqlite3.Row]:
        """What a query finds."""
        with self._lock:
            return self._connection.execute(query, parameters).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
