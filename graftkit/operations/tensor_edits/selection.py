"""Which tensors a step means: names, and expressions that fit whole names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from graftkit.checkpoint.child import SECONDS
from graftkit.checkpoint.expressions import OutOfBounds, matches
from graftkit.checkpoint.tensors import FLOATING, LazyTensor
from graftkit.errors import RecipeError, few, printable
from graftkit.recipe_file.wording import shown

if TYPE_CHECKING:
    from re import Match

#: What a tensor cannot be called: its place in a header is that of something else.
RESERVED = "__metadata__"


def fitting(expression: str, names: Mapping[str, LazyTensor], field: str = "") -> Mapping[str, Match[str]]:
    """The names that an expression fits, at least one.

    Raises:
        RecipeError: it fits none, or does not come to an end.
    """
    try:
        found = matches(expression, names)
    except OutOfBounds as error:
        raise RecipeError(
            f"the expression {shown(expression)} takes more than {SECONDS} seconds on the names of these tensors;"
            " write it without repetitions inside repetitions",
            field=field,
        ) from error
    if not found:
        raise RecipeError(f"{shown(expression)} fits no tensor; {nearest(expression, names)}", field=field)
    return found


def select(
    expressions: Sequence[str], names: Mapping[str, LazyTensor], field: str = "tensors"
) -> dict[str, Match[str]]:
    """The names that one of the expressions fits, each once and in their own order.

    Raises:
        RecipeError: an expression fits none.
    """
    found: dict[str, Match[str]] = {}
    for place, expression in enumerate(expressions):
        for name, match in fitting(expression, names, f"{field}.{place}".lstrip(".")).items():
            found.setdefault(name, match)
    return {name: found[name] for name in names if name in found}


def nearest(expression: str, names: Iterable[str]) -> str:
    """The end of a sentence that names the tensors whose names are nearest to an expression."""
    known, plain = list(names), expression.replace("\\", "")
    close = difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
    return f"the nearest names are {few(close)}" if close else f"names here are {few(known)}"


def require_floating(names: Iterable[str], tensors: Mapping[str, LazyTensor]) -> None:
    """Refuse tensors that are not computed with.

    Raises:
        RecipeError: one is of integers, or of eight bits, whose values need their scales.
    """
    for name in names:
        if tensors[name].dtype not in FLOATING:
            raise RecipeError(
                f"{printable(name)!r} is of dtype {tensors[name].dtype}; only {', '.join(FLOATING)} are computed with",
                field="tensors",
            )


def require_free(new: Mapping[str, str], taken: Iterable[str], field: str = "into") -> None:
    """Check the new names, each with what it is made of.

    Raises:
        RecipeError: one is empty, no name, or that of a tensor that stays.
    """
    held = frozenset(taken)
    for name, origin in new.items():
        if not name or name == RESERVED:
            raise RecipeError(
                f"{printable(origin)!r} would be called {name!r}, which is no name of a tensor", field=field
            )
        if name in held:
            raise RecipeError(
                f"{printable(origin)!r} would be called {printable(name)!r}, as another tensor is", field=field
            )


def shard_of(name: str, shards: Mapping[str, tuple[str, ...]]) -> str:
    """The file that holds a tensor."""
    return next(shard for shard, held in shards.items() if name in held)
