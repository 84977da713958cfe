"""Weights that transformers fuses when it loads them, such as the experts of a mixture: which part each stored tensor is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graftkit.architecture.names import TensorNames
from graftkit.checkpoint.tensors import LazyTensor
from graftkit.errors import InputRejected, printable


@dataclass(frozen=True, slots=True)
class Slice:
    """A stored matrix is rows (``axis`` 0) or columns (1) of one expert's matrix in the fused weight, from ``start`` on."""

    expert: int
    axis: int
    start: int


def slices(names: TensorNames, weight: str, tensors: Mapping[str, LazyTensor]) -> dict[str, Slice]:
    """Name on disk -> its part of ``weight`` (in memory), as the loader's own conversion puts them together.

    Raises:
        InputRejected: the conversion is another than stacking experts and joining their matrices.
    """
    conversion = names.conversions.get(weight)
    axis = _joined_axis(conversion.converter.operations) if conversion else None
    if conversion is None or axis is None:
        raise InputRejected(
            f"{printable(weight)}: is put together from {len(names.on_disk(weight))} stored tensors in a way that cannot be"
            " undone for one of them; save the base once with transformers' save_original_format=False"
        )
    by_pattern: dict[str, list[str]] = {}
    for disk, pattern in conversion.patterns.items():
        by_pattern.setdefault(pattern, []).append(disk)
    found: dict[str, Slice] = {}
    start = 0
    for pattern in conversion.converter.source_patterns:
        stored = by_pattern.get(pattern, [])
        found |= {disk: Slice(expert, axis, start) for expert, disk in enumerate(stored)}
        start += tensors[stored[0]].shape[axis] if stored else 0
    return found


def _joined_axis(operations: list[object]) -> int | None:
    """The axis along which matrices of one expert are joined; None for a conversion that is not understood."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    match operations:
        case [MergeModulelist(dim=0)]:
            return 0
        case [MergeModulelist(dim=0), Concatenate(dim=(1 | 2) as dim)]:
            return int(dim) - 1
    return None
