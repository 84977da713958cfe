"""Write the tables of fields into docs/operations/*.md and docs/recipe.md, from the specs that check a recipe.

A table stands between ``<!-- fields -->`` and ``<!-- end -->``; the prose around it is left alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from graftkit.recipe.operations import Operation
from graftkit.recipe.recipe import Recipe
from graftkit.recipe.schemes import SchemeSpec
from graftkit.recipe.spec import Spec, plain

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

DOCS = Path(__file__).parent.parent / "docs"
BEGIN, END = "<!-- fields -->", "<!-- end -->"

#: A page -> the spec whose fields it shows.
PAGES: dict[Path, type[Spec]] = {
    DOCS / "recipe.md": Recipe,
    **{
        DOCS / "operations" / f"{spec.model_fields['op'].default}.md": spec for spec in get_args(get_args(Operation)[0])
    },
}

#: Parts of a description that are code: mappings, lists, and words with a character that Markdown or HTML would read.
_CODE = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^\s,;:()\[\]{}]*[*_<|\\][^\s,;:()\[\]{}]*")


def fields_of(spec: type[Spec]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield the name of each field as a recipe writes it, and behind these the fields of the specs inside."""
    seen: set[type[Spec]] = set()
    inside: list[tuple[str, type[Spec]]] = []
    for attribute, field in spec.model_fields.items():
        name = field.alias or attribute
        if name not in {"op", "operations"}:
            inside += [(f"{name}.{'*.' if several else ''}", one) for one, several in _specs_in(field.annotation)]
        if name != "op":
            yield name, field
    for prefix, one in inside:
        if one not in seen:
            seen.add(one)
            yield from ((prefix + (field.alias or name), field) for name, field in one.model_fields.items())


def _specs_in(annotation: Any, *, several: bool = False) -> Iterator[tuple[type[Spec], bool]]:
    """Yield the specs in a type, but for schemes, each with whether it stands in a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        if not issubclass(annotation, SchemeSpec):
            yield annotation, several
        return
    inside = several or get_origin(annotation) in {tuple, Mapping}
    for argument in get_args(annotation):
        yield from _specs_in(argument, several=inside)


def _words(annotation: Any) -> Iterator[str]:
    """Yield the words that a field may be: those of a literal and the names of schemes."""
    if isinstance(annotation, type) and issubclass(annotation, SchemeSpec):
        yield annotation.model_fields["scheme"].default
    elif get_origin(annotation) is Literal:
        yield from (word for word in get_args(annotation) if isinstance(word, str))
    elif get_origin(annotation) is not Mapping:
        for argument in get_args(annotation):
            yield from _words(argument)


def table(spec: type[Spec]) -> str:
    """The table of a spec's fields: name, default and meaning."""
    lines = ["| field | default | meaning |", "|---|---|---|"]
    for name, field in fields_of(spec):
        default = (
            "required" if field.is_required() else _code(json.dumps(plain(field.get_default()), ensure_ascii=False))
        )
        words = [*dict.fromkeys(_words(field.annotation))]
        listed = f" One of: {', '.join(map(_code, words))}." if len(words) > 1 else ""
        lines.append(f"| {_code(name)} | {default} | {_marked(field.description or '')}{listed} |")
    return "\n".join(lines)


def _marked(text: str) -> str:
    """A description with what is code marked as such."""
    return _CODE.sub(lambda found: _code(found[0].rstrip(".")) + "." * found[0].endswith("."), text)


def _code(text: str) -> str:
    """Text as code; as HTML where a table would take its bars for borders."""
    if "|" not in text:
        return f"`{text}`"
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
    return f"<code>{escaped}</code>"


def page_with_fields(page: Path) -> str:
    """The text of a page with the table that belongs into it."""
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise ValueError(f"{page}: has no {BEGIN} with {END} behind it")
    return f"{head}{BEGIN}\n{table(PAGES[page])}\n{END}{tail}"


def main() -> None:
    """Write every table."""
    for page in PAGES:
        page.write_text(page_with_fields(page), encoding="utf-8")


if __name__ == "__main__":
    main()
