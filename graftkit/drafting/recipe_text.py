"""A draft as the text of a recipe: valid YAML, with the comments above what they speak of."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.drafting.draft import Step
from graftkit.errors import printable
from graftkit.recipe.dump import dump_field

#: Columns of a comment behind its sign, so that the recipe fits into a terminal of 80.
WIDTH = 77


def recipe_text(
    head: list[str], recipe: Mapping[str, Any], steps: tuple[Step, ...], comments: Mapping[str, str]
) -> str:
    """The text of ``recipe``, whose operations are ``steps``; ``head`` are paragraphs, ``comments`` are by its fields."""
    lines = [line for paragraph in head for line in _comment(paragraph)]
    for name, value in recipe.items():
        lines += _comment(comments.get(name, ""))
        if name == "operations":
            lines += ["operations:", *(line for step in steps for line in _step(step))]
        else:
            lines += dump_field(name, value).splitlines()
    return "\n".join(lines) + "\n"


def _step(step: Step) -> Iterator[str]:
    yield from _comment(step.comments.get("op", ""), "  ")
    yield f"  - op: {step.op}"
    for name, value in step.fields.items():
        yield from _comment(step.comments.get(name, ""), "    ")
        yield from (f"    {line}" if line else "" for line in dump_field(name, value).splitlines())


def _comment(text: str, indent: str = "") -> Iterator[str]:
    """Lines of a comment: each line of ``text`` is wrapped, but for one that begins with a blank; an empty text says nothing."""
    for sentence in text.splitlines():
        if sentence.startswith(" "):
            yield f"{indent}#{printable(sentence)}"
            continue
        width = WIDTH - len(indent)
        for line in textwrap.wrap(printable(sentence), width, break_long_words=False, break_on_hyphens=False):
            yield f"{indent}# {line}"
