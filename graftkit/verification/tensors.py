"""The tensors of two checkpoints, compared bit by bit, a bounded piece at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graftkit.architecture.index_map import IndexMap
from graftkit.checkpoint.checkpoint import Checkpoint
from graftkit.checkpoint.reading import chunks, read_range, read_rows, torch_dtype
from graftkit.checkpoint.tensors import FLOATING, LazyTensor, Stored
from graftkit.errors import printable

#: Rows of a table that are compared at a time.
STEP = 1024


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """One tensor of two checkpoints. ``rows`` counts the old rows that changed; ``largest`` is max |Δ| over them.

    ``largest`` is infinite where a value that is not finite came or went.
    """

    name: str
    kind: str
    old: str | None
    new: str | None
    rows: int = 0
    largest: float | None = None


def tensor_difference(name: str, old: LazyTensor | None, new: LazyTensor | None) -> TensorDifference | None:
    """How one tensor differs; None where dtype, shape and every bit are equal."""
    if old is None or new is None:
        kind = "added" if old is None else "dropped"
        return TensorDifference(name, kind, _describe(old) if old else None, _describe(new) if new else None)
    comparable = old.dtype == new.dtype and old.shape[1:] == new.shape[1:] and len(old.shape) == len(new.shape)
    if not comparable:
        return TensorDifference(name, "changed", _describe(old), _describe(new))
    if old.shape == new.shape and all(a == b for a, b in zip(chunks(old), chunks(new), strict=True)):
        return None
    if not (isinstance(old, Stored) and isinstance(new, Stored) and old.shape and old.nbytes):
        return TensorDifference(name, "changed", _describe(old), _describe(new))
    rows, largest = _row_difference(old, new)
    return TensorDifference(name, "changed", _describe(old), _describe(new), rows, largest)


def changed_tensors(
    old: Checkpoint,
    new: Checkpoint,
    axes: Mapping[str, int],
    ids: IndexMap | None,
    excused: Collection[str] = (),
) -> Iterator[str]:
    """Yield a sentence for each tensor of ``old`` whose bits are not in ``new``, less the ``excused`` ones.

    ``axes`` names the tensors that are indexed by the vocabulary, with the axis: of these the rows that ``ids`` pairs are compared.
    """
    now = new.all_tensors
    for name, before in old.all_tensors.items():
        if name in excused:
            continue
        after, shown = now.get(name), printable(name)
        if after is None:
            yield f"structure: tensor {shown!r} is missing"
            continue
        found = tensor_difference(name, before, after)
        if found is None:
            continue
        if found.rows == 0 and found.old != found.new and not _same_but_for(before.shape, after.shape, axes.get(name)):
            yield f"structure: tensor {shown!r} was {found.old}, now {found.new}"
        elif name not in axes or not (isinstance(before, Stored) and isinstance(after, Stored)):
            yield f"structure: tensor {shown!r}: {found.rows} rows changed, {_gap(found.largest)}"
        elif before.dtype != after.dtype:
            yield f"structure: tensor {shown!r} was {found.old}, now {found.new}"
        else:
            rows, largest = _changed_rows(before, after, axes[name], ids or IndexMap.identity(before.shape[axes[name]]))
            if rows:
                yield f"structure: tensor {shown!r}: {rows} rows of old ids changed, {_gap(largest)}"


def _same_but_for(old: Sequence[int], new: Sequence[int], axis: int | None) -> bool:
    """Whether two shapes are equal but for one axis; never without one."""
    sizes = [[size for place, size in enumerate(shape) if place != axis] for shape in (old, new)]
    return axis is not None and sizes[0] == sizes[1]


def _describe(tensor: LazyTensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _gap(largest: float | None) -> str:
    if largest is None:
        return "not floating point"
    return f"max |Δ| {largest:.3g}" if math.isfinite(largest) else "with values that are not finite"


def _row_difference(old: Stored, new: Stored) -> tuple[int, float | None]:
    """Count the common leading rows that differ, and the largest difference in float64."""
    changed, largest = 0, 0.0
    for a, b in _common_rows(old, new):
        different = (a != b).any(1)
        changed += int(different.sum())
        if old.dtype in FLOATING and different.any():
            dtype = torch_dtype(old.dtype)
            largest = max(largest, _largest(a[different].view(dtype), b[different].view(dtype)))
    return changed, largest if old.dtype in FLOATING else None


def _common_rows(old: Stored, new: Stored, size: int = 8 << 20) -> Iterator[tuple[Any, Any]]:
    import torch

    width = old.nbytes // old.shape[0]
    rows, step = min(old.shape[0], new.shape[0]), max(size // width, 1)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        yield tuple(
            torch.from_numpy(read_range(t.path, t.offset + start * width, count * width)).view(count, width)
            for t in (old, new)
        )  # type: ignore[misc]


def _changed_rows(old: Stored, new: Stored, axis: int, ids: IndexMap) -> tuple[int, float | None]:
    """Count the rows that are not those that ``ids`` pairs them with, and the largest difference in them."""
    floating = old.dtype in FLOATING
    changed, largest = 0, 0.0
    for place, start, length in ids.runs:
        for done in range(0, length, STEP):
            count = min(STEP, length - done)
            a = read_rows(old, axis, start + done, start + done + count)
            b = read_rows(new, axis, place + done, place + done + count)
            different = (a.view(_words(a)) != b.view(_words(b))).any(1)
            changed += int(different.sum())
            if floating and different.any():
                largest = max(largest, _largest(a[different], b[different]))
    return changed, largest if floating else None


def _largest(left: Any, right: Any) -> float:
    """Max |Δ| in float64; infinite where only one side is finite."""
    a, b = left.double(), right.double()
    return float((a - b).abs().masked_fill(a == b, 0.0).nan_to_num(nan=math.inf).max())


def _words(rows: Any) -> Any:
    """The integer dtype of the same width, so that bits are compared and not values."""
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
