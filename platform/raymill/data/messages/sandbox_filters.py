"""The filters and tests that a chat template may use, each charged for its work before it is done.

Left out: filters that pad (`center`, `batch`, `wordwrap`, …), that are random, or that no chat
template needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sized
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS, do_join
from jinja2.runtime import Context
from jinja2.tests import TESTS
from jinja2.utils import pass_context, pass_eval_context

from raymill.data.messages.budget import Budget

# Charged by the length of what they are given …
SHALLOW = (
    "capitalize", "count", "d", "default", "e", "escape", "first", "float", "int", "items", "last",
    "length", "list", "lower", "map", "abs", "reject", "rejectattr", "reverse", "safe", "select",
    "selectattr", "trim", "upper",
)  # fmt: skip
# … by its characters, one by one: they search or split it in Python …
SLOW = ("striptags", "title", "wordcount")
# … or by all within it.
DEEP = ("dictsort", "groupby", "max", "min", "sort", "string", "unique")
COMPARING = (
    "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le",
    "lessthan", "lower", "lt", "ne", "upper",
)  # fmt: skip
MAX_INDENT = 16

Function = Callable[..., Any]


def bounded_filters(budget: Budget) -> dict[str, Function]:
    """Jinja's filters by name, with transformers' `tojson`."""
    given: dict[str, Any] = {**FILTERS}
    filters = {name: _charged(given[name], budget, budget.shallow) for name in SHALLOW}
    filters |= {name: _sorting(name, budget) for name in DEEP}
    filters |= {
        name: _charged(given[name], budget, lambda s: budget.items(len(str(s)))) for name in SLOW
    }
    filters["indent"] = _indent(budget)
    filters["join"] = _join(budget)
    filters["replace"] = _replace(budget)
    filters["sum"] = _sum(budget)
    filters["tojson"] = _tojson(budget)
    return filters


def bounded_tests(budget: Budget) -> dict[str, Function]:
    """Jinja's tests by name; a comparison reads all of what it compares, the others look once."""
    given: dict[str, Any] = {**TESTS}
    return {
        name: _charged(test, budget, budget.deep, every=True)
        if name in COMPARING
        else _charged(test, budget, lambda _: budget.charge(1))
        for name, test in given.items()
    }


def charge_replace(budget: Budget, text: str, old: str, new: str) -> None:
    """Charge for `text.replace(old, new)`, whose length is known beforehand."""
    budget.characters(len(text))
    count = text.count(old)
    budget.characters(len(text) + count * max(0, len(new) - len(old)))


def joinable(budget: Budget, separator: Any, items: Any) -> list[Any]:
    """The items that a join gets, charged for what it makes of them."""
    found = list(items)
    budget.items(len(found))
    budget.characters(len(str(separator)) * len(found))
    for item in found:
        budget.deep(item)
    return found


def _charged(
    function: Function, budget: Budget, charge: Callable[[Any], None], every: bool = False
) -> Function:
    """The function, charged for its value, or for `every` argument."""
    passes = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    # Whatever takes the context isn't computed while the template is compiled, out of the budget.
    @pass_context
    def bounded(context: Context, *args: Any, **kwargs: Any) -> Any:
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
    """A filter that compares all it is given; what a generator yields is read out to be charged."""
    given: dict[str, Any] = {**FILTERS}

    def charge(value: Any) -> None:
        budget.deep(value, len(value).bit_length() + 1 if isinstance(value, Sized) else 1)

    plain = _charged(given[name], budget, charge)

    @pass_context
    def sorting(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        value = list(value) if isinstance(value, Iterator) else value
        return plain(context, value, *args, **kwargs)

    return sorting


def _indent(budget: Budget) -> Function:
    def charge(value: Any) -> None:
        budget.deep(value)
        budget.characters(MAX_INDENT * len(str(value).splitlines()))

    plain = _charged(FILTERS["indent"], budget, charge)

    @pass_context
    def indent(context: Context, s: str, width: int | str = 4, *args: Any, **kwargs: Any) -> Any:
        _check_indent(width)
        return plain(context, s, width, *args, **kwargs)

    return indent


def _check_indent(indent: Any) -> None:
    size = len(indent) if isinstance(indent, str) else indent
    if size is not None and not (isinstance(size, int) and size <= MAX_INDENT):
        raise SecurityError(f"an indent of {indent!r}; at most {MAX_INDENT} are allowed")


def _join(budget: Budget) -> Function:
    @pass_context
    def join(context: Context, value: Any, d: str = "", attribute: Any = None) -> Any:
        return do_join(context.eval_ctx, joinable(budget, d, value), d, attribute)

    return join


def _replace(budget: Budget) -> Function:
    plain: Function = FILTERS["replace"]

    @pass_context
    def replace(context: Context, s: Any, old: str, new: str, count: int | None = None) -> Any:
        budget.deep(s)
        charge_replace(budget, str(s), str(old), str(new))
        return plain(context.eval_ctx, s, old, new, count)

    return replace


def _sum(budget: Budget) -> Function:
    plain = _charged(FILTERS["sum"], budget, budget.deep)

    @pass_context
    def add_up(context: Context, iterable: Any, attribute: Any = None, start: Any = 0) -> Any:
        if not isinstance(start, int | float):  # sums of lists copy themselves at each item
            raise SecurityError("sum starts with something that isn't a number")
        return plain(context, iterable, attribute, start)

    return add_up


def _tojson(budget: Budget) -> Function:
    # transformers' signature: Jinja's own escapes HTML.
    @pass_eval_context
    def dumps(
        _: Any,
        x: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
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
