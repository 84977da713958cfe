"""Whether an adapter does the same to two weights that share their values: two copies of one table, or of one update."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from graftkit.architecture.peft.edits import Edit, Factors, Replaced
from graftkit.checkpoint.held import is_original
from graftkit.checkpoint.reading import equal_bytes, read_tensor
from graftkit.checkpoint.tensors import LazyTensor


def equal_edits(one: tuple[Edit, ...], other: tuple[Edit, ...]) -> bool:
    """Whether these edits of one weight are those of the other; tensors of a source are compared by their bytes.

    What lies below the last replacement of a weight is not seen. A product that lies transposed in one of the two weights is the
    same one: that of a table, and of a linear tied to it.
    """
    first, second = _seen(one), _seen(other)
    return len(first) == len(second) and all(map(_equal, first, second))


def _seen(edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    return edits[max((place for place, edit in enumerate(edits) if isinstance(edit, Replaced)), default=0) :]


def _equal(one: Edit, other: Edit) -> bool:
    if one == dataclasses.replace(other, weight=one.weight):
        return True
    mine, theirs = _fields(one), _fields(other)
    plain = {name: value for name, value in mine.items() if not is_original(value)}
    if type(one) is not type(other) or plain != {name: value for name, value in theirs.items() if name in plain}:
        return False
    if isinstance(one, Factors) and isinstance(other, Factors) and one.layout != other.layout:
        return (
            {one.layout, other.layout} == {"linear", "transposed"} and one.magnitude is None and _mirrored(one, other)
        )
    return all(_equal_tensors(value, theirs[name]) for name, value in mine.items() if is_original(value))


def _fields(edit: Edit) -> Mapping[str, Any]:
    """The fields that say what is done, without the weight's name and the way in which it lies."""
    names = (field.name for field in dataclasses.fields(edit) if field.name not in ("weight", "layout"))
    return {name: getattr(edit, name) for name in names}


def _equal_tensors(one: LazyTensor, other: LazyTensor) -> bool:
    return is_original(other) and equal_bytes(one, other)


def _mirrored(one: Factors, other: Factors) -> bool:
    """Whether each factor of ``one`` is the other factor of ``other``, transposed."""
    pairs = ((one.a, other.b), (one.b, other.a))
    return all(
        left.dtype == right.dtype
        and left.shape == right.shape[::-1]
        and is_original(left)
        and is_original(right)
        and read_tensor(left).equal(read_tensor(right).T)
        for left, right in pairs
    )
