"""What a plain (unquoted) YAML scalar means in a recipe.

As in YAML 1.1, less its traps: ``010``, ``0x1F``, ``12:30`` and ``2024-01-01`` are text here. ``no`` and ``off`` stay booleans
and ``1e-5`` stays text, as for other readers of YAML 1.1; the field that wants something else says so.
"""

import re
from collections.abc import Callable

import yaml

NULL, BOOL, INT, FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))


def _any_case(*words: str) -> str:
    return "|".join(form for word in words for form in (word, word.capitalize(), word.upper()))


#: Tag, the texts that have it, the characters that these begin with ("" stands for the empty text).
_PATTERNS = (
    (NULL, rf"(?:~|{_any_case('null')}|)\Z", [*"~nN", ""]),
    (BOOL, rf"(?:{_any_case('yes', 'no', 'true', 'false', 'on', 'off')})\Z", [*"yYnNtTfFoO"]),
    (INT, r"[-+]?(?:0|[1-9][0-9]{0,99})\Z", [*"-+0123456789"]),
    (FLOAT, r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z", [*"-+.0123456789"]),
)

#: What a plain scalar with such a tag means; every other scalar is text.
MEANINGS: dict[str, Callable[[str], object]] = {
    NULL: lambda _: None,
    BOOL: lambda text: text.lower() in {"yes", "true", "on"},
    INT: int,
    FLOAT: float,
}


def add_resolvers(resolver: type[yaml.resolver.BaseResolver]) -> None:
    """Let ``resolver`` tell these scalars from text."""
    for tag, pattern, beginnings in _PATTERNS:
        resolver.add_implicit_resolver(tag, re.compile(pattern), beginnings)
