"""Values of overrides: text is taken verbatim, everything else is parsed by Hydra's grammar."""

from __future__ import annotations

import re
from shlex import quote
from typing import get_args, get_origin

from raymill.schema.bind import convert, describe

# Keys whose values are taken exactly as typed, `${…}` included.
VERBATIM = ("prompt", "system")
# Placeholder of a value that doesn't fit its key.
UNREADABLE = object()
_BEFORE_QUOTE = re.compile(r'(\\*)"')


def read_value(key: str, raw: str, hint: object, problems: list[str]) -> object:
    """Return the value of an override: text verbatim, everything else by Hydra's grammar.

    A value that doesn't fit is a problem and isn't set, so that the others can still be checked.
    """
    if key in VERBATIM:
        return raw
    names = get_args(hint) if get_args(hint) and get_origin(hint) is not dict else (hint,)
    takes_text = any(name is str or get_origin(name) is tuple for name in (hint, *names))
    takes_list = any(get_origin(name) is tuple for name in (hint, *names))
    if raw != "null" and takes_text and not (takes_list and raw.startswith("[")):
        return raw
    value = _parse(key, raw, hint, problems)
    if value is UNREADABLE or (isinstance(value, str) and "${" in value):
        return value
    before = len(problems)
    convert(float if hint is None else hint, value, key, problems)
    if len(problems) == before:
        return value
    # The problem of a mapping is replaced by one that shows how its entries are typed.
    if get_origin(hint) is dict:
        problems[-1] = _mistyped(key, raw, hint)
    return UNREADABLE


def _mistyped(key: str, raw: str, hint: object) -> str:
    """Return the problem of a value that can't be read, with a spelling that can be."""
    expected = f"{key}={raw}: expected {describe(hint)}"
    inside = raw.strip().strip("{}[]")
    items = [item.strip() for item in inside.split(",") if item.strip()]
    if get_origin(hint) is dict:
        entries = [item.rpartition(":" if ":" in item else "=") for item in items]
        first = [f"{key}.{name.strip()}={number.strip()}" for name, _, number in entries if name]
        first = first or [f"{key}.{items[0] if items else 'name'}=0.5"]
        spelled = " ".join(map(quote, [f"{key}={{}}", *first]))
        return f"{expected}; give each entry by itself, as in {spelled}"
    if any(get_origin(name) is tuple for name in (hint, *get_args(hint))):
        # Within quotes, only a quote and the backslashes right before it are escaped.
        texts = [_BEFORE_QUOTE.sub(r'\1\1\\"', item.strip("'\"")) for item in items]
        listed = ", ".join(f'"{text}"' for text in texts)
        return f"{expected}; put its items in quotes, as in {quote(f'{key}=[{listed}]')}"
    return expected


def _parse(key: str, raw: str, hint: object, problems: list[str]) -> object:
    # Importing Hydra takes a while, and only this parser and the composition need it.
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob, Sweep
    from hydra.errors import HydraException

    try:
        value = OverridesParser.create().parse_override(f"value={raw}").value()
    except HydraException:
        problems.append(_mistyped(key, raw, float if hint is None else hint))
        return UNREADABLE
    if isinstance(value, Sweep | Glob):
        problems.append(f"{key}={raw}: one value is expected; run a sweep as several jobs")
        return UNREADABLE
    return _plain(value)


def _plain(value: object) -> object:
    """Return Hydra's quoted strings and nested values as plain Python."""
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return getattr(value, "text", value)
