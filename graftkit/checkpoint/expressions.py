"""Regular expressions held against names, with an end: what backtracks without one is found out in a child process."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from graftkit.checkpoint.child import OutOfBounds, run_in_child

if TYPE_CHECKING:
    from re import Match

#: Up to this many repetitions, none of them of a group, an expression takes no longer than the square of a name's length.
_FEW_REPETITIONS = 2
_REPETITION, _REPEATED_GROUP = re.compile(r"[*+{]"), re.compile(r"\)[*+{?]|\\[1-9]|\(\?P=")

_PROGRAM = r"""
import re
compiled = re.compile(job["expression"])
for name in job["names"]:
    compiled.fullmatch(name)
"""


def is_simple(expression: str) -> bool:
    """Whether an expression is sure to come to an end on every name, by what it repeats."""
    return len(_REPETITION.findall(expression)) <= _FEW_REPETITIONS and not _REPEATED_GROUP.search(expression)


def matches(expression: str, names: Collection[str]) -> Mapping[str, Match[str]]:
    """The names that ``expression`` fits as a whole, in their order; where one is written just so, that one alone.

    Raises:
        OutOfBounds: the expression backtracks without end on one of them.
    """
    compiled = re.compile(expression)
    if expression in names and not compiled.groups:
        compiled = re.compile(re.escape(expression))
    elif not is_simple(expression):
        _require_end(expression, tuple(names))
    return {name: found for name in names if (found := compiled.fullmatch(name))}


@functools.lru_cache(maxsize=64)
def _require_end(expression: str, names: tuple[str, ...]) -> None:
    run_in_child(_PROGRAM, {"expression": expression, "names": names})


__all__ = ["OutOfBounds", "is_simple", "matches"]
