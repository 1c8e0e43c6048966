"""SQLite database of a ranking: every decision is on disk before the page acknowledges it.

WAL with synchronous=FULL flushes a commit before it returns: a killed process or a power cut loses no
acknowledged decision, and an export can read while people are working.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from raymill.errors import DataError

DATABASE_NAME = "judgements.sqlite"
FORMAT_VERSION = 1
_BUSY_S = 30.0

# items.active: part of the configuration of the last start. items.unusable: the reason for leaving it out.
# judgements.about: for a review, the number of the written answer that it reviews.
# judgements.shown: digests, models, seeds and settings of the answers in the order in which they were shown;
# `ranks` follows the same order. A judgment that was taken back stays, with the time in `undone`.
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
CREATE TABLE judgements ( -- words: keep
    number INTEGER PRIMARY KEY AUTOINCREMENT, judgement_id TEXT NOT NULL UNIQUE,
    item_id TEXT NOT NULL REFERENCES items, kind TEXT NOT NULL,
    about INTEGER REFERENCES judgements, -- words: keep
    annotator TEXT NOT NULL, judge TEXT NOT NULL,
    time TEXT NOT NULL, decision TEXT NOT NULL, shown TEXT NOT NULL, ranks TEXT, text TEXT,
    reason TEXT, seconds REAL NOT NULL, undone TEXT, undone_by TEXT UNIQUE
) STRICT;
CREATE INDEX judgements_of_item ON judgements -- words: keep
    (item_id, annotator);
CREATE INDEX judgements_about ON judgements -- words: keep
    (about);
CREATE VIEW standing AS SELECT * FROM judgements -- words: keep
    WHERE undone IS NULL;
CREATE VIEW verdicts AS SELECT * FROM standing WHERE kind = 'review' AND decision != 'skip';
CREATE VIEW ranked AS SELECT * FROM standing WHERE kind = 'rank';
CREATE VIEW written AS SELECT * FROM standing WHERE kind = 'write'
    AND number NOT IN (SELECT about FROM verdicts WHERE decision = 'reject');
"""


class Database:
    """Connection shared by the threads of this process; other processes may open their own.

    Raises:
        DataError: the file can't be opened, or isn't a database of this format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        try:
            # isolation_level=None leaves transactions to `transaction()` instead of Python's driver.
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
                f"{path} can't be opened as a database of judgments ({error}); restore it, or choose "
                "another name=."
            ) from error

    def _ensure_schema(self) -> None:
        with self.transaction() as connection:
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
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as the only writer; commit it to disk at its end, or roll back on an error."""
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def rows(self, query: str, *parameters: str | int | None) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        with self._lock:
            return self._connection.execute(query, parameters).fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
