"""Where in a text its final answer stands, and when two of them are the same.

Markers are those that datasets of mathematics use: `#### 42` (GSM8K, Cobbe et al. 2021), `\\boxed{42}`
(MATH, Hendrycks et al. 2021), and the `Answer: 42` that prompts commonly ask for.
"""

from __future__ import annotations

import re
from fractions import Fraction

_BOXED = re.compile(r"\\boxed\s*\{")
_LINE = re.compile(r"####|answer\s*:", re.IGNORECASE)
_AROUND = " \t\r\n*`$\"'“”‘’"  # emphasis, code, mathematics, quotes
_NUMBER_CHARACTERS = 100  # longer ones are compared as text
_DECIMAL = re.compile(
    r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?(?:e[+-]?[0-9]{1,3})?"
)
_RATIO = re.compile(r"([+-]?)\s*(?:\\[dt]?frac\{([0-9]+)\}\{([0-9]+)\}|([0-9]+)\s*/\s*([0-9]+))")


def final_answer(text: str) -> str:
    r"""What follows the last marker: the content of `\boxed{…}`, or the rest of the line.

    If nothing is left of that line, the next that isn't blank; without a marker, the whole text.
    """
    marks = [*_BOXED.finditer(text), *_LINE.finditer(text)]
    if not marks:
        return text
    last = max(marks, key=lambda mark: mark.start())
    rest = text[last.end() :]
    if last.re is _BOXED:
        return rest[: _closing_brace(rest)]
    return next((line for line in rest.splitlines() if line.strip(_AROUND)), "")


def same_answer(given: str, expected: str) -> bool:
    """Whether two answers are the same number, or the same text but for case, space and emphasis."""
    given, expected = _normal(given), _normal(expected)
    if given == expected:
        return True
    number = as_number(given)
    return number is not None and number == as_number(expected)


def as_number(text: str) -> Fraction | None:
    """The exact value of `1,234.50`, `-3e2`, `$5`, `3/4` or `\\frac{3}{4}`; None of anything else."""
    text = text.strip(_AROUND).replace("−", "-").lower()
    if len(text) > _NUMBER_CHARACTERS:
        return None
    if ratio := _RATIO.fullmatch(text):
        sign, *parts = ratio.groups()
        above, below = (int(part) for part in parts if part is not None)
        return None if below == 0 else Fraction(-above if sign == "-" else above, below)
    text = re.sub(r"^([+-]?)[$€£]\s*", r"\1", text)
    if not _DECIMAL.fullmatch(text) or not re.match(r"[+-]?\.?[0-9]", text):
        return None
    return Fraction(text.replace(",", ""))


def _normal(text: str) -> str:
    return " ".join(text.casefold().strip(_AROUND).rstrip(".").split()).strip(_AROUND)


def _closing_brace(text: str) -> int:
    """Where the brace closes that was opened before `text`; its length if it never does."""
    depth = 1
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return place
    return len(text)
