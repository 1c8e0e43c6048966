"""The Jinja environment of chat templates: transformers' own, with a budget.

Chat templates come with models from strangers. Rendering follows `_compile_jinja_template` in
`transformers/utils/chat_template_utils.py` (5.24), so that the text is the same; Jinja's sandbox
keeps a template from Python's internals, but not from taking all time and memory. Here, whatever
can grow is charged first (see budget.py): loops and macros by a statement put into their bodies,
operators, comparisons and slices by what is put around their operands, calls and attributes by the
environment's own hooks. What remains is the interpreter's speed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, pass_context

from raymill.data.messages.budget import MAX_INTEGER_BITS, Budget
from raymill.data.messages.guard import SPOKEN_BEGIN, SPOKEN_END
from raymill.data.messages.sandbox_charges import CONCAT, LOOP, SEARCH, SLICE, STEP, WEIGH, Charging
from raymill.data.messages.sandbox_filters import (
    bounded_filters,
    bounded_tests,
    charge_replace,
    joinable,
)

_STR = (
    "capitalize", "casefold", "count", "endswith", "find", "format", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable",
    "isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split",
    "splitlines", "startswith", "strip", "swapcase", "title", "upper",
)  # fmt: skip
_ATTRIBUTES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (str, _STR),
    (dict, ("copy", "get", "items", "keys", "values")),
    (list | tuple | range, ("copy", "count", "index")),
    (int | float, ("is_integer",)),
)
_OURS = (LoopContext, Macro, Namespace, Cycler, Joiner, BlockReference, TemplateReference)
_FORMAT_SPEC = re.compile(r"\{[^{}]*[:!.\[{]")


class SpokenTag(Extension):
    """`{% generation %}…{% endgeneration %}`: what the assistant writes, set between two
    noncharacters."""

    tags = {"generation"}  # noqa: RUF012  (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_spoken"), [], [], body).set_lineno(line)

    def _spoken(self, caller: Callable[[], str]) -> str:
        return f"{SPOKEN_BEGIN}{caller()}{SPOKEN_END}"


class TemplateDict:
    """`dict` without the type itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
    """A namespace that takes no underscored names."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # Jinja's trick: `self=` is a name too
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            TemplateNamespace._check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        TemplateNamespace._check_name(name)  # `self.` reads the template's names
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace's attribute may not begin with _, as {name!r} does")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """One template's environment; its budget must be renewed before each rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[SpokenTag, loopcontrols])
        self.budget = budget = Budget()
        self.filters.clear()
        self.filters.update(bounded_filters(budget))
        self.filters.update(self._charges())
        self.tests.update(bounded_tests(budget))  # by Jinja's names, so none is left as it was
        self.finalize = self._output
        del self.globals["lipsum"]  # random, and as long as one asks
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = TemplateDict()
        self.globals["namespace"] = TemplateNamespace

    def parse_charged(self, source: str) -> nodes.Template:
        """The template's tree with charges; raises TemplateError for what can't be allowed."""
        tree: nodes.Template = Charging().visit(self.parse(source))
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _ATTRIBUTES:
            if isinstance(obj, kind):
                return attr in names
        known = isinstance(obj, (*_OURS, TemplateDict))
        return known and super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):  # hashing it reaches everything inside
            self.budget.deep(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text: str = value.__self__
        if value.__name__ != "format" or _FORMAT_SPEC.search(text):
            raise SecurityError("only str.format with plain fields ({}, {0} or {name}) is allowed")

        def bounded(*args: Any, **kwargs: Any) -> str:
            self.budget.characters(len(text))
            self.budget.deep([*args, *kwargs.values()], times=1 + text.count("{"))
            return wrapped(*args, **kwargs)

        return bounded

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = __self.budget
        budget.enter()
        if (
            not isinstance(__obj, Macro | LoopContext | Undefined)
            and __obj is not TemplateNamespace
        ):
            args = __self._charged_arguments(__obj, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)
        budget.depth -= 1
        return result

    def _charged_arguments(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Charge a call of Python's; returns the arguments, generators among them read out."""
        budget = self.budget
        owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
        if isinstance(owner, str):
            budget.characters(len(owner))
            if name == "join" and len(args) == 1:
                return (joinable(budget, owner, args[0]),)
            if name == "replace" and len(args) >= 2:
                charge_replace(budget, owner, str(args[0]), str(args[1]))
            if name in ("split", "rsplit"):
                by = args[0] if args else kwargs.get("sep")
                pieces = owner.count(by) if isinstance(by, str) and by else len(owner) >> 2
                budget.items(pieces)
            if name == "splitlines":
                budget.items(len(owner) >> 2)
        elif isinstance(owner, list | tuple):
            budget.deep(owner)
        for value in (*args, *kwargs.values()):
            budget.deep(value)
        return args

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = self.budget
        if isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
            if operator == "%":
                raise SecurityError("formatting with % isn't supported")
            if operator == "+":
                budget.shallow(left)
                budget.shallow(right)
            for value, times in ((left, right), (right, left)):
                if operator == "*" and isinstance(times, int) and not isinstance(value, int):
                    size = len(value) * max(0, times)
                    (budget.characters if isinstance(value, str) else budget.items)(size)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * abs(right) if operator == "**" else 0
            bits = left.bit_length() + right.bit_length() if operator == "*" else bits
            if bits > MAX_INTEGER_BITS:
                raise SecurityError(f"an integer of more than {MAX_INTEGER_BITS} bits")
            budget.charge(1)
        return super().call_binop(context, operator, left, right)

    def _output(self, value: Any) -> Any:
        self.budget.deep(value)
        return value

    def _charges(self) -> dict[str, Callable[..., Any]]:
        """Filters with names that no template can write, which `Charging` puts into the tree."""
        budget = self.budget

        @pass_context  # see sandbox_filters: keeps them from being computed early
        def loop(_: Context, steps: int) -> bool:
            budget.iteration(steps)
            return True

        @pass_context
        def step(_: Context, steps: int) -> bool:
            budget.charge(steps)
            return True

        @pass_context
        def weigh(_: Context, value: Any) -> Any:
            budget.deep(value)
            return value

        @pass_context
        def search(_: Context, value: Any) -> Any:
            if isinstance(value, dict):
                budget.charge(1)
                return value
            value = list(value) if isinstance(value, Iterator) else value
            budget.deep(value)
            return value

        @pass_context
        def cut(_: Context, value: Any) -> Any:
            budget.shallow(value)
            return value

        @pass_context
        def concat(_: Context, parts: list[Any]) -> str:
            budget.deep(parts)
            return "".join(map(str, parts))

        return {
            LOOP: loop, STEP: step, WEIGH: weigh, SEARCH: search, SLICE: cut, CONCAT: concat,
        }  # fmt: skip


def _raise_exception(message: object) -> None:
    raise TemplateError(str(message)[:300])


def _strftime_now(format: str) -> str:
    if not isinstance(format, str) or len(format) > 100 or re.search(r"%[^a-zA-Z%]*\d", format):
        raise SecurityError(f"strftime_now with the format {str(format)[:100]!r}")
    return datetime.now().strftime(format)
