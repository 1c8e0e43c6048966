"""Parse and check records, so that later steps can rely on their form.

Every object has each key once, every text is Unicode, and nesting is bounded. Violations are
refused where the record is read, and nowhere else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from raymill.durable import JsonObject

# Levels of lists and objects in a column.
NESTING = 100
# Characters of a message about a record, which may repeat its contents.
SHOWN = 600


class UnusableRecordError(ValueError):
    """Record that can't be used, with the reason. `cause` is the category in which it is
    counted."""

    def __init__(self, why: str, cause: str = "unreadable") -> None:
        super().__init__(why)
        self.cause = cause


def parse_record(line: bytes) -> JsonObject:
    """Parse one line of JSON as a record.

    Raises:
        UnusableRecordError: it isn't a JSON object in UTF-8, or `check_record` refuses it.
    """
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableRecordError(not_utf8(line, error)) from error
    record = parse_json(text, "the record")
    if not isinstance(record, dict):
        raise UnusableRecordError(f"expected a JSON object, found {type(record).__name__}")
    check_record(record)
    return record


def parse_json(text: str, what: str) -> Any:
    """Parse a text of JSON; `what` names it in an error.

    Raises:
        UnusableRecordError: it isn't JSON, or has a key twice in one object.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise UnusableRecordError(_TOO_DEEP.format(what)) from None
    except json.JSONDecodeError as error:
        raise UnusableRecordError(f"not JSON ({error})") from error
    except UnusableRecordError:
        raise
    # Python limits the digits of a number, because parsing takes quadratic time.
    except ValueError as error:
        digits = sys.get_int_max_str_digits()
        raise UnusableRecordError(f"a number has more than {digits} digits") from error


def check_record(record: Mapping[str, object]) -> None:
    """Refuse a record that later steps couldn't hold, print or write as JSON.

    Raises:
        UnusableRecordError: a name or a text in it holds half of a surrogate pair, or lists and
            objects are nested deeper than NESTING.
    """
    for name, value in record.items():
        _check_text(name, "the name of a column")
        _check(value, name, 1)


def not_utf8(content: bytes, error: UnicodeDecodeError) -> str:
    """Explain why bytes aren't text; `content` is that of a whole file or line."""
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    hint = "; it begins as UTF-16 does, convert it to UTF-8" if wide else ""
    return f"not UTF-8 ({error.reason}){hint}"


def printable(text: str) -> str:
    """Return at most SHOWN characters of a text, on one line, with unprintable characters escaped.

    Any terminal and file accepts the result.
    """
    cut = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    if cut.isprintable():
        return cut
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)


_TOO_DEEP = "{} is nested deeper than " + f"{NESTING} levels"


def _object(pairs: list[tuple[str, object]]) -> JsonObject:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UnusableRecordError(f"the key {twice!r} stands twice in one object")
    return record


def _check(value: object, column: str, level: int) -> None:
    if isinstance(value, str):
        if not value.isascii():
            _check_text(value, f"column {column!r}")
    elif isinstance(value, Mapping | list | tuple):
        if level > NESTING:
            raise UnusableRecordError(_TOO_DEEP.format(f"column {column!r}"), "type")
        inner: Sequence[object] = [*value, *value.values()] if isinstance(value, Mapping) else value
        for item in inner:
            _check(item, column, level + 1)


def _check_text(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UnusableRecordError(
            f"{what} holds half of a surrogate pair, which isn't text", "type"
        ) from None
