"""Where a template's tree is charged: rewritten after parsing, before it becomes Python.

The filters' names hold a space, so no template can call them.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

LOOP = "raymill loop"  # one more turn of a loop, and its body's text
STEP = "raymill step"  # a macro's or block's text
WEIGH = "raymill weigh"  # a value that will be read to its end; returned as it is
SEARCH = "raymill search"  # what `in` looks through
SLICE = "raymill slice"  # what is copied in part
CONCAT = "raymill concat"  # instead of `~`


class Charging(NodeTransformer):
    """Returns the tree with charges. Raises SecurityError for tags that can't be allowed."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        steps = 1 + _text_steps(node)
        self.generic_visit(node)
        node.body.insert(0, _statement(LOOP, steps, node.lineno))
        if node.test is not None:  # turned down items never reach the body
            node.test = nodes.And(_filter(nodes.Const(1), LOOP, node.lineno), node.test)
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._charge_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._charge_body(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:  # noqa: N802
        return self._charge_body(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno), CONCAT, node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _weighed(node.expr, WEIGH)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr, SEARCH if "in" in operand.op else WEIGH)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):  # copies, and goes by no hook of the environment
            node.node = _weighed(node.node, SLICE)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = _weighed(node.key, WEIGH)  # hashing a tuple reaches everything inside
        return node

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError(f"the tag for {type(node).__name__} isn't supported in a chat template")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _refuse  # noqa: N815
    visit_ScopedEvalContextModifier = visit_EvalContextModifier = _refuse  # noqa: N815

    def _charge_body(self, node: Any) -> nodes.Node:
        steps = 1 + _text_steps(node)
        self.generic_visit(node)
        node.body.insert(0, _statement(STEP, steps, node.lineno))
        found: nodes.Node = node
        return found


def _text_steps(node: nodes.Node) -> int:
    """Steps for the text that stands in a body: it is written without any other charge."""
    length = sum(len(found.data) for found in node.find_all(nodes.TemplateData))
    length += sum(
        len(found.value) for found in node.find_all(nodes.Const) if isinstance(found.value, str)
    )
    return length >> 6


def _weighed(node: nodes.Expr, by: str) -> nodes.Expr:
    """The expression, charged; constants are as short as the template itself."""
    items = node.items if isinstance(node, nodes.List | nodes.Tuple) else [node]
    if all(isinstance(item, nodes.Const) for item in items):
        return node
    return _filter(node, by, node.lineno)


def _filter(node: nodes.Expr, name: str, line: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=line)


def _statement(name: str, steps: int, line: int) -> nodes.Node:
    return nodes.ExprStmt(_filter(nodes.Const(steps), name, line), lineno=line)
