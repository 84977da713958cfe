"""A recipe as YAML, with its defaults written out."""

import re

import yaml

from graftkit.recipe.recipe import Recipe
from graftkit.recipe_file.yaml_scalars import FLOAT, add_resolvers


class _Writer(yaml.SafeDumper):
    """Quotes whatever any reader of YAML 1.1 or 1.2 would not take for text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - added to below
        first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:  # noqa: ARG002, FBT002
        """Indent lists below their key."""
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        """Write equal values out each time; recipes have no aliases."""
        return True


add_resolvers(_Writer)
_Writer.add_implicit_resolver(FLOAT, re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+\Z|0o[0-7]+\Z"), [*"-+0123456789"])


#: Besides the printable characters, these may stand in a block as they are.
_BLOCK_CHARACTERS = dict.fromkeys(map(ord, "\n\t"))


def _represent_text(writer: _Writer, text: str) -> yaml.ScalarNode:
    """Lines as a block; but PyYAML changes the line breaks that only Unicode knows unless they are escapes."""
    style = "|" if "\n" in text.strip("\n") else None
    if not text.translate(_BLOCK_CHARACTERS).isprintable():
        style = '"'
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style)


_Writer.add_representer(str, _represent_text)


def dump_recipe(recipe: Recipe) -> str:
    """Return ``recipe`` as YAML that loads to an equal one: in the order of fields, defaults written out."""
    return yaml.dump(recipe.plain(), Dumper=_Writer, sort_keys=False, allow_unicode=True, width=120)


def dump_field(name: str, value: object) -> str:
    """One field as lines of YAML, a list or mapping in flow style, for a recipe that is put together by hand."""
    if isinstance(value, list | dict):
        flow = yaml.dump(value, Dumper=_Writer, sort_keys=False, allow_unicode=True, width=100, default_flow_style=True)
        return f"{name}: {flow.rstrip().replace(chr(10), f'{chr(10)}  ')}"
    return yaml.dump({name: value}, Dumper=_Writer, allow_unicode=True, width=1000, default_flow_style=False).rstrip()
