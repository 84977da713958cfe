"""Steps that change names alone: rename and delete. The bytes of every tensor stay where they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.errors import RecipeError, printable
from graftkit.operations.tensor_edits.selection import fitting, require_free, select
from graftkit.operations.tensor_edits.stepped import Place, Stepped


def rename(step: Mapping[str, str], checkpoint: Checkpoint, _: Place) -> Stepped:
    """Give each tensor the name that the first expression that fits it makes of its own.

    Raises:
        RecipeError: an expression fits no tensor, no name changes, or two tensors would have one.
    """
    names: dict[str, str] = {}
    for expression, template in step.items():
        for name, match in fitting(expression, checkpoint.tensors).items():
            names.setdefault(name, match.expand(template))
    names = {old: new for old, new in names.items() if old != new}
    if not names:
        raise RecipeError("every name stays what it is")
    origins: dict[str, str] = {}
    for old, new in names.items():
        if new in origins:
            raise RecipeError(
                f"{printable(origins[new])!r} and {printable(old)!r} would both be called {printable(new)!r}"
            )
        origins[new] = old
    require_free(origins, checkpoint.tensors.keys() - names.keys(), field="")
    return Stepped(checkpoint.with_names(names))


def delete(step: Sequence[str], checkpoint: Checkpoint, _: Place) -> Stepped:
    """Drop tensors.

    Raises:
        RecipeError: an expression fits no tensor, or none would be left.
    """
    found = select(step, checkpoint.tensors, field="")
    if len(found) == len(checkpoint.tensors):
        raise RecipeError("leaves no tensor")
    return Stepped(checkpoint.with_tensors(dict.fromkeys(found)))
