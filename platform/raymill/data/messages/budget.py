"""A limit on the work of a chat template, counted in steps, so that every machine refuses the same templates.

A step takes about a microsecond: an iteration of a loop, an operator, a third of a call, 64 characters or 4
items of a list that are read or made. Work is charged before it is done, so that nothing large is ever built.
"""

from __future__ import annotations

from collections.abc import ItemsView, KeysView, Sequence, ValuesView
from typing import Any

from jinja2.exceptions import TemplateRuntimeError
from jinja2.utils import Namespace

MAX_STEPS = 500_000  # about a second; a conversation of a million characters takes a tenth
MAX_ITERATIONS = 100_000
MAX_CALLS_DEEP = 100
MAX_NESTING = 100  # lists within lists; read_conversation allows 64 within a message's arguments
MAX_INTEGER_BITS = 4096
MAX_OUTPUT_CHARACTERS = 16 * 2**20

# A value that a template computes, or that is passed to it: Jinja's own signatures have no narrower type.
Value = Any

_SIZED = (list, tuple, dict, range, KeysView, ValuesView, ItemsView)
_CHARACTERS = 6  # log2 of what one step covers
_ITEMS = 2


class OverBudgetError(TemplateRuntimeError):
    """The template exceeds its budget. Nothing within Jinja catches this error."""


class Budget:
    """The remaining work of one rendering."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.steps = MAX_STEPS
        self.iterations = MAX_ITERATIONS
        self.depth = 0

    def charge(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise OverBudgetError(f"it does more work than a rendering may ({MAX_STEPS:,} steps)")

    def characters(self, count: int) -> None:
        self.charge(1 + (count >> _CHARACTERS))

    def items(self, count: int) -> None:
        self.charge(1 + (count >> _ITEMS))

    def iteration(self, steps: int) -> None:
        self.iterations -= 1
        if self.iterations < 0:
            raise OverBudgetError(f"it loops more than {MAX_ITERATIONS:,} times")
        self.charge(steps)

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_CALLS_DEEP:
            raise OverBudgetError(f"its macros call each other more than {MAX_CALLS_DEEP} deep")
        self.charge(3)

    def shallow(self, value: object) -> None:
        """Charge for a value's own length, not for the values within a list."""
        if isinstance(value, str):
            self.characters(len(value))
        elif isinstance(value, _SIZED):
            self.items(len(value))
        else:
            self.charge(1)

    def deep(self, value: object, times: int = 1) -> None:
        """Charge for everything within a value, each time that it is reached.

        A list that contains itself is short but prints endlessly; the walk ends when the budget does.
        """
        if isinstance(value, str):
            self.charge(times * (1 + (len(value) >> _CHARACTERS)))
            return
        if value is None or isinstance(value, int | float):
            self.charge(times)
            return
        level: list[object] = [value]
        for _ in range(MAX_NESTING):
            below: list[object] = []
            for item in level:
                if isinstance(item, str):
                    self.charge(times * (1 + (len(item) >> _CHARACTERS)))
                    continue
                inside = _inside(item)
                self.charge(times * (1 + len(inside)))
                below += inside
            if not below:
                return
            level = below
        raise OverBudgetError(f"it nests lists more than {MAX_NESTING} deep")


def _inside(value: object) -> Sequence[object]:
    """Return the values within a container, or nothing for other values."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | range):
        return value
    if isinstance(value, KeysView | ValuesView | ItemsView):
        return list(value)
    if isinstance(value, Namespace):
        return list(object.__getattribute__(value, "_Namespace__attrs").values())
    return ()
