"""Regular expressions that a recipe or an adapter's config gives to peft, held against names within a budget first."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from graftkit.checkpoint.child import SECONDS, OutOfBounds, run_in_child
from graftkit.errors import printable, shortened

#: Up to this many repetitions, none of them of a group, an expression takes no longer than the square of a name's length.
_FEW_REPETITIONS = 2
_REPETITION, _REPEATED_GROUP = re.compile(r"[*+{]"), re.compile(r"\)[*+{?]|\\[1-9]|\(\?P=")

#: How peft holds an expression against a name, for each of the fields that take one.
_PROGRAM = r"""
import re
for pattern in job["patterns"]:
    for whole in (pattern, rf"(.*\.)?({pattern})$", rf".*\.{pattern}\.(\d+)\."):
        try:
            compiled = re.compile(whole)
        except Exception:
            continue  # peft says so in its own words
        for name in job["names"]:
            compiled.match(name), compiled.fullmatch(name)
"""


def endless_pattern(config: Mapping[str, Any], model: Any) -> str | None:
    """Say which of the expressions among peft's fields takes too long on the model's names; None where none does."""
    for pattern in dict.fromkeys(_patterns(config)):
        simple = len(_REPETITION.findall(pattern)) <= _FEW_REPETITIONS and not _REPEATED_GROUP.search(pattern)
        if not simple and not _ends(pattern, tuple(name for name, _ in _named(model))):
            return (
                f"the regular expression {shortened(printable(pattern), 200)!r} takes more than {SECONDS} seconds on the names of"
                " this model's modules; name the modules"
            )
    return None


def _named(model: Any) -> Iterator[tuple[str, Any]]:
    yield from model.named_modules()
    yield from model.named_parameters()


def _patterns(config: Mapping[str, Any]) -> Iterator[str]:
    for field, value in config.items():
        if not field.endswith(("modules", "pattern")):
            continue
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from (key for key in value if isinstance(key, str))
        elif field.endswith("pattern") and isinstance(value, list | tuple):
            yield from (item for item in value if isinstance(item, str))


def unmatched(patterns: Mapping[str, Any], names: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each name or regular expression that peft finds in none of ``names``, those of the targets."""
    for key in patterns:
        if not any(re.match(rf"(.*\.)?({key})$", name) for name in names):
            close = difflib.get_close_matches(key, [name.rpartition(".")[2] for name in names], n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"{printable(key)!r} matches no target{hint}"


@functools.lru_cache(maxsize=64)
def _ends(pattern: str, names: tuple[str, ...]) -> bool:
    try:
        run_in_child(_PROGRAM, {"patterns": [pattern], "names": names})
    except OutOfBounds:
        return False
    return True
