"""Charges in a template's tree: it is rewritten after parsing, before it becomes Python.

The names of the inserted filters contain a space, so no template can call them.
"""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

LOOP = "raymill loop"  # an iteration of a loop, with its body's text
STEP = "raymill step"  # the text of a macro or block
WEIGH = "raymill weigh"  # a value that will be read completely
SEARCH = "raymill search"  # the right operand of `in`
SLICE = "raymill slice"  # a value that is copied in part
CONCAT = "raymill concat"  # instead of `~`


class Charging(NodeTransformer):
    """Transformer that adds charges to a tree; raises SecurityError for tags that aren't allowed."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        steps = 1 + _text_steps(node)
        self.generic_visit(node)
        node.body.insert(0, _statement(LOOP, steps, node.lineno))
        # Items that the loop's test refuses never reach the body, so the test is charged too.
        if node.test is not None:
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
        # A slice copies, and none of the environment's hooks sees it.
        if isinstance(node.arg, nodes.Slice):
            node.node = _weighed(node.node, SLICE)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        # Hashing a tuple reads everything inside it.
        node.key = _weighed(node.key, WEIGH)
        return node

    def _refuse(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError(f"the tag for {type(node).__name__} isn't supported in a chat template")

    visit_Include = visit_Import = visit_FromImport = visit_Extends = _refuse  # noqa: N815
    visit_ScopedEvalContextModifier = visit_EvalContextModifier = _refuse  # noqa: N815

    def _charge_body(self, node: Any) -> nodes.Node:
        steps = 1 + _text_steps(node)
        self.generic_visit(node)
        node.body.insert(0, _statement(STEP, steps, node.lineno))
        charged: nodes.Node = node
        return charged


def _text_steps(node: nodes.Node) -> int:
    """Return the steps for a body's own text, which is written without any other charge."""
    length = sum(len(text.data) for text in node.find_all(nodes.TemplateData))
    length += sum(
        len(const.value) for const in node.find_all(nodes.Const) if isinstance(const.value, str)
    )
    return length >> 6


def _weighed(node: nodes.Expr, by: str) -> nodes.Expr:
    """Return the expression with a charge; constants need none, since they are part of the short template."""
    items = node.items if isinstance(node, nodes.List | nodes.Tuple) else [node]
    if all(isinstance(item, nodes.Const) for item in items):
        return node
    return _filter(node, by, node.lineno)


def _filter(node: nodes.Expr, name: str, line: int) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=line)


def _statement(name: str, steps: int, line: int) -> nodes.Node:
    return nodes.ExprStmt(_filter(nodes.Const(steps), name, line), lineno=line)
