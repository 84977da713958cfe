"""Numbers and regular expressions that a recipe or an adapter's config gives to peft, looked at before peft counts or matches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from graftkit.checkpoint.child import SECONDS, OutOfBounds, run_in_child
from graftkit.checkpoint.expressions import is_simple
from graftkit.errors import printable, shortened

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

#: No number of a small model's adapter is larger, be it a count of steps.
_LEAST_LIMIT = 1 << 20

#: What the names of fields end with that hold seeds: any number.
_SEEDS = ("seed", "key")


def beyond_limits(config: Mapping[str, Any], model: Any) -> str | None:
    """Say which of peft's fields peft would not get done with on this model: a number or an expression; None where none is."""
    return _large_number(config, model) or _endless_pattern(config, model)


def _large_number(config: Mapping[str, Any], model: Any) -> str | None:
    limit = max([_LEAST_LIMIT, *(parameter.numel() for parameter in model.parameters())])
    for field, value in config.items():
        if isinstance(value, int) and abs(value) > limit and not field.endswith(_SEEDS):
            return f"{printable(field)} is out of bounds: no number may be larger than the largest weight of this model, {limit:,}"
    return None


def _endless_pattern(config: Mapping[str, Any], model: Any) -> str | None:
    for pattern in dict.fromkeys(_patterns(config)):
        if not is_simple(pattern) and not _ends(pattern, tuple(name for name, _ in _named(model))):
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


@functools.lru_cache(maxsize=64)
def _ends(pattern: str, names: tuple[str, ...]) -> bool:
    try:
        run_in_child(_PROGRAM, {"patterns": [pattern], "names": names})
    except OutOfBounds:
        return False
    return True
