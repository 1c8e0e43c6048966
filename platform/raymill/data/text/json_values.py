"""Records as every later step takes them for granted: objects that have each key once, text that is Unicode,
nesting that ends. What isn't so is refused here, where it is read, and nowhere else."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

NESTING = 100  # levels of lists and objects in a column
SHOWN = 600  # characters of a message about a record, which may repeat what it holds


class UnusableRecordError(ValueError):
    """A record that can't be used; says why. `cause` is what such records are counted by."""

    def __init__(self, why: str, cause: str = "unreadable") -> None:
        super().__init__(why)
        self.cause = cause


def parse_record(line: bytes) -> dict[str, Any]:
    """Read one line of JSON as a record.

    Raises:
        UnusableRecordError: it isn't JSON in UTF-8 or no object, or `check_record` refuses it.
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
    """Read a text of JSON; `what` it is, for the error.

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
    except ValueError as error:  # Python's own limit, which guards against quadratic time
        digits = sys.get_int_max_str_digits()
        raise UnusableRecordError(f"a number has more than {digits} digits") from error


def check_record(record: Mapping[str, Any]) -> None:
    """Refuse a record that not every later step could hold, print or write as JSON.

    Raises:
        UnusableRecordError: a name or a text anywhere in it holds half of a surrogate pair, or lists and
            objects are nested deeper than NESTING.
    """
    for name, value in record.items():
        _check_text(name, "the name of a column")
        _check(value, name, 1)


def not_utf8(content: bytes, error: UnicodeDecodeError) -> str:
    """Say why bytes aren't text; `content` is that of a whole file or line."""
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    hint = "; it begins as UTF-16 does, convert it to UTF-8" if wide else ""
    return f"not UTF-8 ({error.reason}){hint}"


def printable(text: str) -> str:
    """Return a text of at most SHOWN characters that stands on one line and that any terminal and file takes;
    what it doesn't take is escaped."""
    cut = text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
    if cut.isprintable():
        return cut
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in cut)


_TOO_DEEP = "{} is nested deeper than " + f"{NESTING} levels"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UnusableRecordError(f"the key {twice!r} stands twice in one object")
    return found


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
