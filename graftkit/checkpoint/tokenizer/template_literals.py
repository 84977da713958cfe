"""The texts that a chat template writes itself, around what the messages say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from graftkit.checkpoint.tokenizer.chat_template import template_environment

if TYPE_CHECKING:
    from jinja2.nodes import Node


def literals_of(template: str) -> Iterator[str]:
    """Yield each text that stands in a Jinja template to be written, be it bare or a string of an expression that is written.

    Names of roles and fields that are compared or looked up are none. A template that does not compile yields nothing.
    """
    import jinja2
    from jinja2 import nodes

    try:
        tree = template_environment().parse(template)
    except (jinja2.TemplateSyntaxError, RecursionError):
        return
    for output in tree.find_all(nodes.Output):
        for part in output.nodes:
            yield from _written(part)
    for assigned in tree.find_all(nodes.Assign):
        yield from _written(assigned.node)


def _written(node: Node) -> Iterator[str]:
    from jinja2 import nodes

    match node:
        case nodes.TemplateData(data=text) | nodes.Const(value=str() as text):
            yield text
        case nodes.Add(left=left, right=right):
            yield from _written(left)
            yield from _written(right)
        case nodes.Concat(nodes=parts):
            for part in parts:
                yield from _written(part)
        case nodes.CondExpr(expr1=one, expr2=other):
            yield from _written(one)
            if other is not None:
                yield from _written(other)
        case nodes.Filter(node=inner) if inner is not None:
            yield from _written(inner)
        case _:
            return
