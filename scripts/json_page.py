"""Make docs/json.md: what each command prints with --json, from the schemas that `graftkit schema --of COMMAND` prints."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from graftkit.printed_json import PRINTED, ErrorJson

PAGE = Path(__file__).parent.parent / "docs" / "json.md"

HEAD = """# What commands print with `--json`

Every command takes `--json` and prints one JSON value on standard output. `graftkit schema --of COMMAND` prints its JSON Schema; this page is
made of the same by `scripts/json_page.py`. Every key is there in every case, null or empty where there is nothing to say, and a number that is not
finite is the text `"nan"`, `"inf"` or `"-inf"`. What a check measured depends on the check, and is an object of its own.

A command that ends with an error prints it as JSON too, besides its lines on standard error, whose exit code is the same. Where `verify`, `diff`
or `selftest` find something, that is no error: they print what they found, and the exit code says so.
"""


def kind_schema(kind: Any) -> dict[str, Any]:
    """The JSON Schema of one object that a command prints."""
    return TypeAdapter(kind).json_schema(mode="serialization")


def shown_type(schema: dict[str, Any]) -> str:
    """A schema's type in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(shown_type(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "any value")
    if kind == "array" and isinstance(schema.get("items"), dict) and schema["items"]:
        return f"list of {shown_type(schema['items'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {shown_type(schema['additionalProperties'])}"
    names = {"string": "text", "array": "list", "boolean": "true or false"}
    return names.get(kind, kind)


def said_of(name: str) -> str:
    """What the docstring of an object says; pydantic itself gives that of a dataclass in newer releases only."""
    modules = [module for place, module in sys.modules.items() if place.startswith("graftkit.")]
    found = next((vars(module)[name] for module in modules if name in vars(module)), None)
    return inspect.cleandoc(found.__doc__ or "") if found else ""


def table(schema: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table of an object's keys."""
    yield "| key | type | meaning |"
    yield "|---|---|---|"
    for key, value in schema["properties"].items():
        meaning = value.get("description") or said_of(value.get("$ref", "").rpartition("/")[2])
        yield f"| `{key}` | {shown_type(value)} | {sentence(meaning)} |"


def sentence(description: str) -> str:
    """The first sentence of a description, in Markdown."""
    text = " ".join(description.split("\n\n", maxsplit=1)[0].split()).replace("``", "`").replace("|", "\\|")
    return text.partition(". ")[0].rstrip(".")


def page() -> str:
    """The whole page."""
    defs: dict[str, Any] = {}
    parts = [HEAD]
    for kind in (ErrorJson, *dict.fromkeys(kind for kinds in PRINTED.values() for kind in kinds)):
        schema = kind_schema(kind)
        defs |= schema.pop("$defs", {})
        parts.append("\n".join([f"## {sentence(schema['description'])}", "", *table(schema), ""]))
    shared = {name: schema for name, schema in sorted(defs.items()) if "properties" in schema}
    parts.append("## Objects in them\n")
    for name, schema in shared.items():
        said = said_of(name).replace("``", "`")
        parts.append("\n".join([f"### {name}", "", said, "", *table(schema), ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
