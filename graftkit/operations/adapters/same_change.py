"""Whether an adapter changes two tied weights alike, so that they may stay one."""

from __future__ import annotations

import dataclasses

from graftkit.architecture.peft.edits import Edit, Factors, Replaced
from graftkit.checkpoint.reading import equal_bytes, read_tensor
from graftkit.checkpoint.tensors import LazyTensor


def same_change(one: tuple[Edit, ...], other: tuple[Edit, ...]) -> bool:
    """Whether the edits of two weights of one shape give equal weights; values are read where they are stored twice."""
    first, second = _effective(one), _effective(other)
    return len(first) == len(second) and all(map(_alike, first, second))


def _effective(edits: tuple[Edit, ...]) -> tuple[Edit, ...]:
    """The edits from the last replacement on: what is below it is not seen."""
    start = max((place for place, edit in enumerate(edits) if isinstance(edit, Replaced)), default=0)
    return edits[start:]


def _alike(one: Edit, other: Edit) -> bool:
    if isinstance(one, Replaced) and isinstance(other, Replaced):
        return one.values is other.values or equal_bytes(one.values, other.values)
    if isinstance(one, Factors) and isinstance(other, Factors) and one.layout != other.layout:
        plain = one.magnitude is None and other.magnitude is None and one.scaling == other.scaling
        tables = {one.layout, other.layout} == {"linear", "transposed"}
        return plain and tables and _turned(one.a, other.b) and _turned(one.b, other.a)
    return dataclasses.replace(one, weight="") == dataclasses.replace(other, weight="")


def _turned(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether a factor is the transpose of another one."""
    same = one.dtype == other.dtype and one.shape == other.shape[::-1]
    return same and read_tensor(one).equal(read_tensor(other).T)
