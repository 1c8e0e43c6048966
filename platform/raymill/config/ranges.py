"""Checks of single values; each yields a problem, or nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Names become folders, registry entries and Ray ids, which would misread other characters.
SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_NAME_RULE = "letters, digits, '.', '_' and '-', at most 64, not starting with '.' or '-'"


def at_least(key: str, value: float | None, low: float) -> Iterator[str]:
    """Refuse a number below its least value."""
    if value is not None and value < low:
        yield f"{key}={value}: must be at least {low:g}"


def above(key: str, value: float | None, low: float) -> Iterator[str]:
    """Refuse a number that isn't above `low`."""
    if value is not None and not value > low:
        yield f"{key}={value}: must be above {low:g}"


def fraction(key: str, value: float, positive: bool = False) -> Iterator[str]:
    """Refuse a number outside of 0 to 1; `positive` refuses 0 too."""
    if not (0 < value <= 1 if positive else 0 <= value <= 1):
        yield f"{key}={value}: must be {'above 0 and' if positive else 'from 0 to'} at most 1"


def safe_name(key: str, value: str | None) -> Iterator[str]:
    """Refuse a name that folders, registries or Ray would misread."""
    if value is not None and not SAFE_NAME.fullmatch(value):
        yield f"{key}={value!r}: allowed are {_NAME_RULE}"
