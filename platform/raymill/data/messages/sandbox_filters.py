"""The filters and tests that a chat template may use, each charged for its work before it is done.

Filters that pad (`center`, `batch`, `wordwrap`, …), that are random, or that no chat template needs are left
out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sized

from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, do_join
from jinja2.runtime import Context
from jinja2.tests import TESTS
from jinja2.utils import pass_context, pass_eval_context

from raymill.data.messages.budget import Budget, Value

# These are charged by the length of their value.
SHALLOW = (
    "capitalize", "count", "d", "default", "e", "escape", "first", "float", "int", "items", "last",
    "length", "list", "lower", "map", "abs", "reject", "rejectattr", "reverse", "safe", "select",
    "selectattr", "trim", "upper",
)  # fmt: skip
# These are charged by every character: they search or split the value in Python.
SLOW = ("striptags", "title", "wordcount")
# These are charged by everything within the value.
DEEP = ("dictsort", "groupby", "max", "min", "sort", "string", "unique")
COMPARING = (
    "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le",
    "lessthan", "lower", "lt", "ne", "upper",
)  # fmt: skip
MAX_INDENT = 16

Function = Callable[..., Value]


def bounded_filters(budget: Budget) -> dict[str, Function]:
    """Return Jinja's filters by name, with the `tojson` of transformers."""
    filters_of_jinja: dict[str, Value] = {**FILTERS}
    filters = {name: _charged(filters_of_jinja[name], budget, budget.shallow) for name in SHALLOW}
    filters |= {name: _sorting(name, budget) for name in DEEP}
    filters |= {
        name: _charged(filters_of_jinja[name], budget, lambda s: budget.items(len(str(s))))
        for name in SLOW
    }
    filters["indent"] = _indent(budget)
    filters["join"] = _join(budget)
    filters["replace"] = _replace(budget)
    filters["sum"] = _sum(budget)
    filters["tojson"] = _tojson(budget)
    return filters


def bounded_tests(budget: Budget) -> dict[str, Function]:
    """Return Jinja's tests by name; comparisons are charged for both values, all others for one step."""
    tests_of_jinja: dict[str, Value] = {**TESTS}
    return {
        name: _charged(test, budget, budget.deep, every=True)
        if name in COMPARING
        else _charged(test, budget, lambda _: budget.charge(1))
        for name, test in tests_of_jinja.items()
    }


def charge_replace(budget: Budget, text: str, old: str, new: str) -> None:
    """Charge for `text.replace(old, new)`, whose length can be computed beforehand."""
    budget.characters(len(text))
    count = text.count(old)
    budget.characters(len(text) + count * max(0, len(new) - len(old)))


def joinable(budget: Budget, separator: Value, items: Value) -> list[Value]:
    """Return the items of a join, charged for its result."""
    listed = list(items)
    budget.items(len(listed))
    budget.characters(len(str(separator)) * len(listed))
    for item in listed:
        budget.deep(item)
    return listed


def _charged(
    function: Function, budget: Budget, charge: Callable[[Value], None], every: bool = False
) -> Function:
    """Return the function with a charge for its value, or for `every` argument."""
    passes = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    # A filter that takes the context isn't evaluated while the template is compiled, outside the budget.
    @pass_context
    def bounded(context: Context, *args: Value, **kwargs: Value) -> Value:
        budget.charge(1)
        for value in args if every else args[:1]:
            charge(value)
        if passes == "context":
            return function(context, *args, **kwargs)
        if passes == "eval_context":
            return function(context.eval_ctx, *args, **kwargs)
        if passes == "environment":
            return function(context.environment, *args, **kwargs)
        return function(*args, **kwargs)

    return bounded


def _sorting(name: str, budget: Budget) -> Function:
    """Return a filter that compares all items; a generator is read out first, to be charged."""
    filters_of_jinja: dict[str, Value] = {**FILTERS}

    def charge(value: Value) -> None:
        budget.deep(value, len(value).bit_length() + 1 if isinstance(value, Sized) else 1)

    plain = _charged(filters_of_jinja[name], budget, charge)

    @pass_context
    def sorting(context: Context, value: Value, *args: Value, **kwargs: Value) -> Value:
        # A generator has no length, and can only be read once.
        value = list(value) if isinstance(value, Iterator) else value
        return plain(context, value, *args, **kwargs)

    return sorting


def _indent(budget: Budget) -> Function:
    def charge(value: Value) -> None:
        budget.deep(value)
        budget.characters(MAX_INDENT * len(str(value).splitlines()))

    plain = _charged(FILTERS["indent"], budget, charge)

    @pass_context
    def indent(
        context: Context,
        s: str,
        width: int | str = 4,
        *args: Value,
        **kwargs: Value,
    ) -> Value:
        # A large indent would multiply the length of the text.
        _check_indent(width)
        return plain(context, s, width, *args, **kwargs)

    return indent


def _check_indent(indent: Value) -> None:
    size = len(indent) if isinstance(indent, str) else indent
    if size is not None and not (isinstance(size, int) and size <= MAX_INDENT):
        raise SecurityError(f"an indent of {indent!r}; at most {MAX_INDENT} are allowed")


def _join(budget: Budget) -> Function:
    @pass_context
    def join(context: Context, value: Value, d: str = "", attribute: Value = None) -> Value:
        return do_join(context.eval_ctx, joinable(budget, d, value), d, attribute)

    return join


def _replace(budget: Budget) -> Function:
    plain: Function = FILTERS["replace"]

    @pass_context
    def replace(context: Context, s: Value, old: str, new: str, count: int | None = None) -> Value:
        budget.deep(s)
        charge_replace(budget, str(s), str(old), str(new))
        return plain(context.eval_ctx, s, old, new, count)

    return replace


def _sum(budget: Budget) -> Function:
    plain = _charged(FILTERS["sum"], budget, budget.deep)

    @pass_context
    def add_up(
        context: Context,
        iterable: Value,
        attribute: Value = None,
        start: Value = 0,
    ) -> Value:
        # A sum of lists copies itself at every item.
        if not isinstance(start, int | float):
            raise SecurityError("sum starts with something that isn't a number")
        return plain(context, iterable, attribute, start)

    return add_up


def _tojson(budget: Budget) -> Function:
    # The signature is that of transformers: Jinja's own filter escapes HTML.
    @pass_eval_context
    def dumps(
        _: Value,
        x: Value,
        ensure_ascii: bool = False,
        indent: Value = None,
        separators: Value = None,
        sort_keys: bool = False,
    ) -> str:
        _check_indent(indent)
        budget.deep(x, times=1 if indent is None else 1 + MAX_INDENT)
        if separators is not None and max(map(len, separators)) > MAX_INDENT:
            raise SecurityError("tojson's separators are too long")
        return json.dumps(
            x,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    return _charged(dumps, budget, budget.shallow)
