"""Setting a chat template wherever a checkpoint keeps one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftkit.checkpoint.tokenizer.template_bounds import why_unbounded
from graftkit.errors import RecipeError, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jinja2 import Environment
    from jinja2.nodes import Node
    from jinja2.parser import Parser

    from graftkit.checkpoint.tokenizer.vocabulary import Json

#: JSON documents that may hold a copy, which some servers read in place of chat_template.jinja.
COPIES = ("tokenizer_config.json", "chat_template.json", "processor_config.json")


def set_chat_template(documents: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return the documents that change when ``text`` becomes the chat template.

    Written are chat_template.jinja and each copy that the checkpoint has in a JSON document. Where
    tokenizer_config.json holds a list of named templates, its default is replaced, and chat_template.jinja is written
    only if it exists: beside it, transformers would no longer see the other templates of the list.

    Raises:
        RecipeError: ``text`` is not a template that transformers can compile; the message names the line.

    """
    check_chat_template(text)
    result: dict[str, Any] = {}
    named = isinstance((documents.get("tokenizer_config.json") or {}).get("chat_template"), list)
    if not named or "chat_template.jinja" in documents:
        result["chat_template.jinja"] = text
    for name in COPIES:
        document = documents.get(name)
        if isinstance(document, dict) and document.get("chat_template") is not None:
            result[name] = {**document, "chat_template": _in_place_of(document["chat_template"], text)}
    return {name: value for name, value in result.items() if value != documents.get(name)}


def check_chat_template(text: str) -> None:
    """Raise RecipeError unless ``text`` is bounded and compiles in the environment in which transformers renders chat templates.

    Source: ``transformers.utils.chat_template_utils``: immutable sandbox, trimmed blocks, loop controls and the
    ``generation`` block, which marks what the assistant says.
    """
    import jinja2

    if why := why_unbounded(text):
        raise RecipeError(why, field="chat_template")
    environment = template_environment()
    try:
        environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise RecipeError(f"line {error.lineno}: {printable(error.message)}", field="chat_template") from error
    except (RecursionError, MemoryError, SyntaxError) as error:  # the last two are what Python's own parser says
        raise RecipeError("is nested too deeply for Jinja and Python to compile", field="chat_template") from error
    except Exception as error:  # what constants come to when they are computed may be anything
        why = f"Jinja and Python cannot compile it: {printable(str(error).partition(chr(10))[0])}"
        raise RecipeError(why, field="chat_template") from error


def template_environment() -> Environment:
    """The environment in which templates are compiled; what a template calls may be anything, since it is not rendered."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(jinja2.ext.Extension):
        tags = {"generation"}  # noqa: RUF012 - the attribute is jinja's

        def parse(self, parser: Parser) -> Node | list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = repr
    return environment


def _in_place_of(old: Json, text: str) -> Json:
    if isinstance(old, list):
        others = [item for item in old if not (isinstance(item, dict) and item.get("name") == "default")]
        return [{"name": "default", "template": text}, *others]
    return {**old, "default": text} if isinstance(old, dict) else text
