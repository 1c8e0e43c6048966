"""The Jinja environment of chat templates: that of transformers, with a budget.

Chat templates come with models from strangers. Rendering follows `_compile_jinja_template` in
`transformers/utils/chat_template_utils.py` (5.24), so that the text is the same. Jinja's sandbox keeps a
template from Python's internals, but not from taking all time and memory. Here, whatever can grow is charged
first (see budget.py): loops and macros by a statement inserted into their bodies, operators, comparisons and
slices by a filter around their operands, calls and attributes by the environment's own hooks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Cycler, Joiner, Namespace, pass_context

from raymill.data.messages.budget import MAX_INTEGER_BITS, Budget, Value
from raymill.data.messages.guard import ASSISTANT_BEGIN, ASSISTANT_END
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
_ATTRIBUTES: tuple[tuple[Value, tuple[str, ...]], ...] = (
    (str, _STR),
    (dict, ("copy", "get", "items", "keys", "values")),
    (list | tuple | range, ("copy", "count", "index")),
    (int | float, ("is_integer",)),
)
_OURS = (LoopContext, Macro, Namespace, Cycler, Joiner, BlockReference, TemplateReference)
_FORMAT_SPEC = re.compile(r"\{[^{}]*[:!.\[{]")


class GenerationTag(Extension):
    """The tag `{% generation %}…{% endgeneration %}`: puts the assistant's text between two noncharacters."""

    tags = {"generation"}  # noqa: RUF012  (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{ASSISTANT_BEGIN}{caller()}{ASSISTANT_END}"


class TemplateDict:
    """The function `dict`, without access to the type."""

    def __call__(self, *args: Value, **kwargs: Value) -> dict[Value, Value]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Value) -> dict[Value, Value]:
        return dict.fromkeys(*args)


class TemplateNamespace(Namespace):
    """A namespace that refuses names with a leading underscore."""

    # As in Jinja, `self` isn't a parameter, so that a template may use that name.
    def __init__(*args: Value, **kwargs: Value) -> None:
        self, rest = args[0], args[1:]
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            TemplateNamespace._check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Value) -> None:
        # The class is named, since attributes of `self` are the template's names.
        TemplateNamespace._check_name(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check_name(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a namespace's attribute may not begin with _, as {name!r} does")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment of one template; its budget must be renewed before each rendering."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
        )
        self.budget = budget = Budget()
        self.filters.clear()
        self.filters.update(bounded_filters(budget))
        self.filters.update(self._charges())
        # Every one of Jinja's tests is replaced, since these have the same names.
        self.tests.update(bounded_tests(budget))
        self.finalize = self._output
        # Its text is random and of any length.
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["dict"] = TemplateDict()
        self.globals["namespace"] = TemplateNamespace

    def parse_charged(self, source: str) -> nodes.Template:
        """Return the template's tree with charges; raise TemplateError for tags that aren't allowed."""
        tree: nodes.Template = Charging().visit(self.parse(source))
        return tree

    def is_safe_attribute(self, obj: Value, attr: str, value: Value) -> bool:
        for kind, names in _ATTRIBUTES:
            if isinstance(obj, kind):
                return attr in names
        known = isinstance(obj, (*_OURS, TemplateDict))
        return known and super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Value, argument: Value) -> Value:
        # Hashing a tuple reads everything inside it.
        if isinstance(argument, tuple):
            self.budget.deep(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Value) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        text: str = value.__self__
        if value.__name__ != "format" or _FORMAT_SPEC.search(text):
            raise SecurityError("only str.format with plain fields ({}, {0} or {name}) is allowed")

        def bounded(*args: Value, **kwargs: Value) -> str:
            self.budget.characters(len(text))
            self.budget.deep([*args, *kwargs.values()], times=1 + text.count("{"))
            return wrapped(*args, **kwargs)

        return bounded

    def call(
        __self,  # noqa: N805
        __context: Context,
        __obj: Value,
        *args: Value,
        **kwargs: Value,
    ) -> Value:
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
        self,
        function: Value,
        args: tuple[Value, ...],
        kwargs: dict[str, Value],
    ) -> tuple[Value, ...]:
        """Charge a call of a Python function; return the arguments, with generators read out."""
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
                parts = owner.count(by) if isinstance(by, str) and by else len(owner) >> 2
                budget.items(parts)
            if name == "splitlines":
                budget.items(len(owner) >> 2)
        elif isinstance(owner, list | tuple):
            budget.deep(owner)
        for value in (*args, *kwargs.values()):
            budget.deep(value)
        return args

    def call_binop(self, context: Context, operator: str, left: Value, right: Value) -> Value:
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

    def _output(self, value: Value) -> Value:
        self.budget.deep(value)
        return value

    def _charges(self) -> dict[str, Callable[..., Value]]:
        """Return the filters that `Charging` inserts into the tree, by names that no template can write."""
        budget = self.budget

        # A filter that takes the context isn't evaluated early, while the template is compiled.
        @pass_context
        def loop(_: Context, steps: int) -> bool:
            budget.iteration(steps)
            return True

        @pass_context
        def step(_: Context, steps: int) -> bool:
            budget.charge(steps)
            return True

        @pass_context
        def weigh(_: Context, value: Value) -> Value:
            budget.deep(value)
            return value

        @pass_context
        def search(_: Context, value: Value) -> Value:
            if isinstance(value, dict):
                budget.charge(1)
                return value
            value = list(value) if isinstance(value, Iterator) else value
            budget.deep(value)
            return value

        @pass_context
        def cut(_: Context, value: Value) -> Value:
            budget.shallow(value)
            return value

        @pass_context
        def concat(_: Context, parts: list[Value]) -> str:
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
